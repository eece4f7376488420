"""What [recipe] says of a training, without torch: optimizers, schedules, phases, updates, and the order of images."""
