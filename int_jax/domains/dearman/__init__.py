"""DEAR MAN: rehearsing a hard conversation, the speaker's skills rated turn by turn (the idea of IMBUE, arXiv 2402.12556)."""
