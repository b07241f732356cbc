"""Metal text to C++ that clang accepts: tokens, rules, rewriting."""
