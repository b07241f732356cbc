"""Translates Metal text to C++ that clang compiles: tokens, Metal's own rules, and the rewriting itself."""
