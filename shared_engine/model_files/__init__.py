"""What a model's files say before anything starts. Downloads nothing and knows no settings. Standard library
only.
"""
