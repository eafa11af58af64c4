"""Private and undocumented names of other libraries, one file for each library, behind names of our own.

Every name has a reason here and a test in `tests/compat` that fails with a sentence once a release of the library drops
or changes it. Nothing else lives here: no algorithm, no option, and no import of another room except `errors`.
"""
