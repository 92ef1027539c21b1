"""What the kernel and the GPU's driver know: processes, locks, memory. Knows no engine. Standard library only."""
