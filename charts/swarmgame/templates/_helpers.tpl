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
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: swarmgame
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- define "swarmgame.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "swarmgame.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image by digest, else by tag; of {image, chart}. */}}
{{- define "swarmgame.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "swarmgame.operatorImage" -}}
{{- include "swarmgame.image" (dict "image" .Values.image "chart" .Chart) -}}
{{- end -}}

{{- define "swarmgame.gatewayImage" -}}
{{- if .Values.games.gatewayImage.repository -}}
{{- include "swarmgame.image" (dict "image" .Values.games.gatewayImage "chart" .Chart) -}}
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

{{- define "swarmgame.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
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
# kopf posts the games' events, in the core group.
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}
