"""The LLM API model that NVIDIA's TensorRT-LLM images carry, run from there.

export/llm.py copies this file into the model repository as ``llm/1/model.py``, beside the
``model.yaml`` that it reads.
"""

import importlib.util
import os
import sys

FOLDER = os.environ.get("TRTLLM_LLMAPI", "/app/all_models/llmapi/tensorrt_llm/1")

path = os.path.join(FOLDER, "model.py")
spec = importlib.util.spec_from_file_location("trtllm_llmapi", path)
if not os.path.isfile(path) or spec is None or spec.loader is None:
    raise FileNotFoundError(
        f"{path}: not found; serve this model in a -trtllm-python-py3 image, or name the folder of "
        "TensorRT-LLM's LLM API model in TRTLLM_LLMAPI"
    )
sys.path.insert(0, FOLDER)  # it imports a file beside it
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
TritonPythonModel = module.TritonPythonModel
