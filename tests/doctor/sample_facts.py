"""What the child processes report on a healthy machine, to be varied."""

from __future__ import annotations

from safesteer_edge.doctor.children import (
    BundleFacts,
    DriverFacts,
    LlamaFacts,
    OnnxRuntimeFacts,
    TokenFacts,
)

CPU_INFO = "CPU : SSE3 = 1 | AVX2 = 1 | SVE = 0 | SVE_CNT = 16 | REPACK = 1 |"
LLAMA = LlamaFacts("0.3.36", CPU_INFO, False, False, False, True)
NO_DRIVER = DriverFacts(False, None, "", ())
H100 = DriverFacts(True, None, "13.0", ("NVIDIA H100 80GB HBM3",))
ONNXRUNTIME = OnnxRuntimeFacts(
    "1.31.1", ("CUDAExecutionProvider", "CPUExecutionProvider"), (), (), 0
)
BUNDLE = BundleFacts(
    "smollm2", "exact", "CPU", 1.2e-5, 8, 3, (), is_calibrated=True, has_vector=False
)
TOKEN = TokenFacts(0.2, 0.1, "layer_input", "CPU", 3, None, "Hello", None, False, 300 << 20)
