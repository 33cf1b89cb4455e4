"""DEAR MAN: a hard conversation is rehearsed, its skills rated turn by turn (the idea of IMBUE, arXiv 2402.12556)."""
