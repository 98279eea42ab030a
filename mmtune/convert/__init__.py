"""Floor 5: reads checkpoints of other systems, writes mmtune folders, and proves that both answer the same."""
