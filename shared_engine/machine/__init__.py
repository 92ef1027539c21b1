"""What the kernel and the GPU's driver tell: processes, locks, memory. Knows no engine. Standard library only."""
