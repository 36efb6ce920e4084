"""Mask R-CNN without PyTorch: python tools/detect_onnx.py mask_rcnn.onnx photo.jpg

The model comes from: maskrcnn export mask_rcnn.onnx --weights F --image-size 480 640 --dynamic
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map  # written by maskrcnn export
names = json.loads(about.get("names", "{}"))  # by label
print(f"maskrcnn_scratch {about.get('version', 'unknown')}, {len(names)} classes", file=sys.stderr)
photo = np.asarray(Image.open(sys.argv[2]).convert("RGB"), dtype=np.float32) / 255  # [H, W, 3]
images = photo.transpose(2, 0, 1)[None]  # [1, 3, H, W], RGB in 0-1, any size
outputs = session.run(["boxes", "labels", "scores", "masks", "num_detections"], {"images": images})
boxes, labels, scores, masks, number = (output[0] for output in outputs)  # of the first image
for d in range(number):
    box, pixels = boxes[d].astype(float).round(1).tolist(), (masks[d, 0] > 0.5).sum()
    name = names.get(str(labels[d]), "")
    print(f"class {labels[d]} {name}  score {scores[d]:.3f}  box {box}  {pixels} pixels")
