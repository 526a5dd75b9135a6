"""What happens at which inner step: synchronisations and the inner learning rate. Pure arithmetic, no tensors."""
