"""Files of answers, that a process goes on with which another one began: each line says which row it answers, what that
row said, and how it was asked.
"""
