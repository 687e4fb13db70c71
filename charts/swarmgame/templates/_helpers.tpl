{{/* The chart's name, as a label. */}}
{{- define "swarmgame.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of the objects: the release's, followed by the chart's unless it contains that already. */}}
{{- define "swarmgame.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "swarmgame.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Identify the operator's pods, also beside those of a game of the same name; they never change during a release's life.
The games' network policies admit pods with this name and component.
*/}}
{{- define "swarmgame.selectorLabels" -}}
app.kubernetes.io/name: swarmgame
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "swarmgame.labels" -}}
{{ include "swarmgame.selectorLabels" . }}
{{ include "swarmgame.sharedLabels" . }}
{{- end -}}

{{/* Labels of every object, whatever its component. */}}
{{- define "swarmgame.sharedLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: swarmgame
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "swarmgame.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "swarmgame.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/*
An image by digest, else by tag; of {image, root}. global.imageRegistry replaces the host of the repository: its first
part, where that has a dot or a colon or is localhost, as in Docker's names.
*/}}
{{- define "swarmgame.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.global.imageRegistry -}}
{{- $repository = printf "%s/%s" . (regexReplaceAll "^(localhost|[^/]*[.:][^/]*)/" $repository "") -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "swarmgame.operatorImage" -}}
{{- include "swarmgame.image" (dict "image" .Values.image "root" .) -}}
{{- end -}}

{{- define "swarmgame.gatewayImage" -}}
{{- if .Values.games.gatewayImage.repository -}}
{{- include "swarmgame.image" (dict "image" .Values.games.gatewayImage "root" .) -}}
{{- else -}}
{{- include "swarmgame.operatorImage" . -}}
{{- end -}}
{{- end -}}

{{/* "true" when a leader is elected, else empty. */}}
{{- define "swarmgame.elects" -}}
{{- $mode := .Values.leaderElection.mode -}}
{{- if or (eq $mode "always") (and (eq $mode "auto") (gt (int .Values.replicaCount) 1)) -}}true{{- end -}}
{{- end -}}

{{- define "swarmgame.leaseName" -}}
{{- default (include "swarmgame.fullname" .) .Values.leaderElection.leaseName -}}
{{- end -}}

{{/* The operator's rights in a namespace that it watches, resource by resource. */}}
{{- define "swarmgame.namespacedRules" -}}
- apiGroups: [swarmgame.dev]
  resources: [swarmgames]
  verbs: [get, list, watch, delete]
- apiGroups: [swarmgame.dev]
  resources: [swarmgames/status]
  verbs: [patch]
# An owner reference that blocks deletion needs this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [swarmgame.dev]
  resources: [swarmgames/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, secrets, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- if eq .Values.operator.reachPods "Proxy" }}
# The progress of peers and gateways, read through the API server.
- apiGroups: [""]
  resources: [pods/proxy]
  verbs: [get]
{{- end }}
# kopf posts the games' events, in the core group; of an object that does not start, the operator reads the events.
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
{{- end -}}
