"""OpenLoRA: one base model in memory, many adapters multiplexed over it, different ones in the same batch."""
