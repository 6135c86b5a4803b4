"""Cameras without lens distortion, as nerfstudio makes them for methods that train on whole images."""

from __future__ import annotations

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.full_images_datamanager import _undistort_image


def undistorted(cameras: Cameras) -> Cameras:
    """Pinhole cameras that see what nerfstudio's `FullImageDatamanager` leaves of these cameras' photographs.

    Their intrinsics are those that OpenCV gives the undistorted photographs, and their sizes those that are cropped
    from them. The cameras that are given stay as they are, and no photograph is read.

    Args:
        cameras: [N].
    """
    intrinsics, sizes = cameras.get_intrinsics_matrices().clone(), []
    for index in range(len(cameras)):
        camera = cameras[index]
        width, height = int(camera.width), int(camera.height)
        distortion = camera.distortion_params
        if distortion is not None and torch.any(distortion != 0):
            photograph = np.zeros((height, width, 1), dtype=np.uint8)
            matrix, photograph, _ = _undistort_image(
                camera, distortion.numpy(), {}, photograph, intrinsics[index].numpy()
            )
            intrinsics[index] = torch.from_numpy(matrix)
            height, width = photograph.shape[:2]
        sizes.append((width, height))
    widths, heights = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2).unbind(-1)
    return Cameras(
        camera_to_worlds=cameras.camera_to_worlds.clone(),
        fx=intrinsics[:, 0, 0],
        fy=intrinsics[:, 1, 1],
        cx=intrinsics[:, 0, 2],
        cy=intrinsics[:, 1, 2],
        width=widths,
        height=heights,
        camera_type=CameraType.PERSPECTIVE,
    )
