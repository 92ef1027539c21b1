"""Which of several members a request goes to. Pure: no I/O, no event loop, and the caller's clock."""
