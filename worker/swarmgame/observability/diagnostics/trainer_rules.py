"""Warnings that a trainer finds itself: it gives their text, here are their cause and cure."""

from __future__ import annotations

from swarmgame.observability.diagnostics.rules import Rule

OF_TRAINER = {
    rule.code: rule
    for rule in (
        Rule(
            "shortcut-left-out",
            "When the model is loaded: a shortcut of sampling or training does not give the log-probabilities that a "
            "row has alone, and is left out",
            "The architecture computes something from padding, positions, masks or caches that the shortcut does not "
            "know",
            "Nothing is wrong with the results: they only take longer; docs/reference/architectures.md lists what is "
            "quick",
            lambda records, facts: None,
        ),
        Rule(
            "prompts-cut",
            "A prompt is longer than the model and maxPromptTokens leave room for; its count is that of such prompts",
            "Questions or the system prompt are long, maxNewTokens takes most of the model's context, or "
            "maxPromptTokens is low",
            "Lower maxNewTokens, raise maxPromptTokens, or use shorter questions or a model with a longer context",
            lambda records, facts: None,
        ),
        Rule(
            "sampler-mismatch",
            "In the first training step, log-probabilities of own new rollouts differ between sampler and training",
            "Weights changed in between, noise is on in training, or an engine computes otherwise than the trainer",
            "Train in float32 (dtype) or sample with sampler: eager; if it stays, the model cannot be trained rightly",
            lambda records, facts: None,
        ),
        Rule(
            "evaluation-mode",
            "When a module of actions is made: it has dropout or batch normalisation",
            "What a policy computes must depend on its observation alone: other peers weigh its actions by it",
            "Leave these layers out, or normalise with LayerNorm or GroupNorm",
            lambda records, facts: None,
        ),
        Rule(
            "rollouts-not-finite",
            "Rollouts have a log-probability that is not finite, or a ratio that overflows; its count is that of such "
            "rollouts",
            "Weights or activations overflow in their type, or the learning rate is too high",
            "The log names the rollout and the layer; lower learningRate, set maxGradNorm, or use dtype float32",
            lambda records, facts: None,
        ),
        Rule(
            "text-incomplete",
            "A completion holds ids that have no text; its count is that of such completions",
            "The model has more ids than its tokenizer, and its weights are random or hardly trained",
            "Use the tokenizer that belongs to the model; a trained model does not sample such ids",
            lambda records, facts: None,
        ),
        Rule(
            "text-not-reversible",
            "Texts of peers with another tokenizer are dropped; its count is that of such rollouts",
            "This tokenizer lacks characters of the text, changes it, or reads special tokens in it",
            "Use models with tokenizers of one family, or play with one model",
            lambda records, facts: None,
        ),
    )
}
"""Warnings that a trainer finds itself (`Trainer.notices`), by code."""
