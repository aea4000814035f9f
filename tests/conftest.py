"""Shapes and types in the signatures of cctlib are checked while tests run, and only then."""

import jaxtyping

jaxtyping.install_import_hook("cctlib", "typechecker.checked")
