"""How the processes of an engine communicate: the private directory, locks, record, log, messages on the control
socket. Starts and ends nothing. Standard library only.
"""
