"""Conversations with a partner: scripts of partners, what is best in them, and who words what they say."""
