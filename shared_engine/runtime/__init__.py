"""What the processes of an engine say to each other: the private directory, locks, record, log, messages on the control
socket. Starts and ends nothing. Standard library only.
"""
