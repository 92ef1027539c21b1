"""What the files of a model tell before anything starts. Downloads nothing and knows no settings. Standard library
only.
"""
