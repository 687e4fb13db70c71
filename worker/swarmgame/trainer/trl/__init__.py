"""TRL's GRPOTrainer as an update rule: its losses, optimizers and schedules, over the groups of a round."""
