"""A read-only view of all engines of this user. Looking starts nothing, keeps nothing awake and takes no lock that
anybody waits for. Must not change an engine, and needs no packages.
"""
