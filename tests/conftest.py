"""What every test shares. State of the whole process that is set here, and nowhere else in the tests:

* hypothesis runs without deadlines (a first call compiles) and from a fixed seed, so that a red run is red again;
* float32 products keep float32 precision on devices that would use TF32 or bfloat16 for them.

Subprocesses that tests start see neither: they run as a user's would. Tiny models and their weights: `tiny.py`.
"""

import hypothesis
import jax

hypothesis.settings.register_profile("mla_jax", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("mla_jax")
jax.config.update("jax_default_matmul_precision", "highest")
