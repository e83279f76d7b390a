//! What a declared device needs beside its file: `ioctl` requests, devices that belong to it, and files that libraries read
//! to find out what it can do.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use crate::wire::PipelineJob;

/// Requests of `ioctl`: those whose bits of the mask are these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IoctlPattern {
    pub(super) mask: u64,
    pub(super) value: u64,
}

impl IoctlPattern {
    /// All requests of a type (bits 8 to 15).
    const fn for_ioctl_type(kind: u8) -> Self {
        Self {
            mask: 0xff00,
            value: (kind as u64) << 8,
        }
    }

    /// Requests of a type that pass a structure to the driver, from it, or both (bits 30 and 31).
    const fn ioctls_of_type_and_direction(kind: u8, direction: u64) -> Self {
        Self {
            mask: 0xc000_ff00,
            value: direction << 30 | (kind as u64) << 8,
        }
    }

    const fn for_exact_request(request: u64) -> Self {
        Self {
            mask: 0xffff_ffff,
            value: request,
        }
    }
}

/// A kind of devices.
#[derive(Debug)]
pub(super) struct DeviceClass {
    /// How the paths of its devices begin.
    prefixes: &'static [&'static str],
    pub(super) ioctl_patterns: &'static [IoctlPattern],
    /// Devices and folders of devices that libraries open, too.
    pub(super) companions: &'static [&'static str],
    pub(super) read_paths: &'static [&'static str],
}

/// Cameras and media controllers. Their buffers are shared with encoders (`b`).
const VIDEO4LINUX_DEVICE_CLASS: DeviceClass = DeviceClass {
    prefixes: &["/dev/video", "/dev/media", "/dev/v4l"],
    ioctl_patterns: &[
        IoctlPattern::for_ioctl_type(b'V'),
        IoctlPattern::for_ioctl_type(b'|'),
        IoctlPattern::for_ioctl_type(b'b'),
    ],
    companions: &[],
    read_paths: &[
        "/sys/class/video4linux",
        "/sys/dev/char",
        "/sys/devices",
        "/run/udev/data",
    ],
};

/// Graphics cards, for VA-API.
const GRAPHICS_DEVICE_CLASS: DeviceClass = DeviceClass {
    prefixes: &["/dev/dri/"],
    ioctl_patterns: &[IoctlPattern::for_ioctl_type(b'd'), IoctlPattern::for_ioctl_type(b'b')],
    companions: &[],
    read_paths: &[
        "/sys/class/drm",
        "/sys/dev/char",
        "/sys/devices",
        "/run/udev/data",
        "/usr/share/libdrm",
        "/usr/share/drirc.d",
        "/usr/share/glvnd",
        "/etc/drirc",
        "/etc/libva.conf",
    ],
};

/// Sound cards. A card is opened by its control device first. Requests of timers share their type with those of terminals,
/// which carry no direction.
const SOUND_DEVICE_CLASS: DeviceClass = DeviceClass {
    prefixes: &["/dev/snd"],
    ioctl_patterns: &[
        IoctlPattern::for_ioctl_type(b'A'),
        IoctlPattern::for_ioctl_type(b'U'),
        IoctlPattern::ioctls_of_type_and_direction(b'T', 1),
        IoctlPattern::ioctls_of_type_and_direction(b'T', 2),
        IoctlPattern::ioctls_of_type_and_direction(b'T', 3),
        // SNDRV_TIMER_IOCTL_START, _STOP, _CONTINUE and _PAUSE.
        IoctlPattern {
            mask: 0xffff_fffc,
            value: 0x54a0,
        },
    ],
    companions: &["/dev/snd"],
    read_paths: &[
        "/usr/share/alsa",
        "/etc/alsa",
        "/etc/asound.conf",
        "/proc/asound",
        "/sys/class/sound",
        "/sys/dev/char",
        "/sys/devices",
        "/run/udev/data",
    ],
};

/// Cards with the driver of NVIDIA_DEVICE_CLASS, for CUDA, NVENC and NVDEC. The driver of its unified memory uses numbers without a type.
const NVIDIA_DEVICE_CLASS: DeviceClass = DeviceClass {
    prefixes: &["/dev/nvidia"],
    ioctl_patterns: &[
        IoctlPattern::for_ioctl_type(b'F'),
        IoctlPattern {
            mask: 0xffff_ff00,
            value: 0,
        },
        // UVM_INITIALIZE and UVM_DEINITIALIZE.
        IoctlPattern::for_exact_request(0x3000_0001),
        IoctlPattern::for_exact_request(0x3000_0002),
    ],
    companions: &[
        "/dev/nvidiactl",
        "/dev/nvidia-modeset",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia-caps",
    ],
    read_paths: &[
        "/proc/driver/nvidia",
        "/proc/devices",
        "/proc/modules",
        "/sys/module/nvidia",
        "/sys/bus/pci/devices",
        "/sys/dev/char",
        "/sys/devices",
        "/usr/share/nvidia",
    ],
};

/// Digital television.
const DVB_DEVICE_CLASS: DeviceClass = DeviceClass {
    prefixes: &["/dev/dvb/"],
    ioctl_patterns: &[IoctlPattern::for_ioctl_type(b'o')],
    companions: &[],
    read_paths: &["/sys/class/dvb", "/sys/dev/char", "/sys/devices", "/run/udev/data"],
};

const ALL_DEVICE_CLASSES: [&DeviceClass; 5] = [
    &VIDEO4LINUX_DEVICE_CLASS,
    &GRAPHICS_DEVICE_CLASS,
    &SOUND_DEVICE_CLASS,
    &NVIDIA_DEVICE_CLASS,
    &DVB_DEVICE_CLASS,
];

/// Returns the classes of the devices that a job declares. A device of no known class can be read and written, and nothing
/// else.
pub(super) fn device_classes(job: &PipelineJob) -> Vec<&'static DeviceClass> {
    let declared: Vec<_> = job
        .files
        .iter()
        .filter(|path| is_device_or_device_folder(path))
        .collect();
    // A link such as /dev/v4l/by-id/... is followed.
    let is_of = |class: &DeviceClass, path: &Path| {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let begins = |path: &Path| {
            let path = path.to_string_lossy();
            class.prefixes.iter().any(|prefix| path.starts_with(prefix))
        };
        begins(path) || begins(&real)
    };
    let is_declared = |class: &&DeviceClass| declared.iter().any(|path| is_of(class, path));
    ALL_DEVICE_CLASSES.into_iter().filter(is_declared).collect()
}

/// Returns whether a path is a device, or a folder of devices below `/dev`.
pub fn is_device_or_device_folder(path: &Path) -> bool {
    let is_device_folder = |path: &Path| path.starts_with("/dev") && path != Path::new("/dev");
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_char_device() || (metadata.is_dir() && is_device_folder(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(class: &DeviceClass, request: u64) -> bool {
        let matches = |pattern: &IoctlPattern| request & pattern.mask == pattern.value;
        class.ioctl_patterns.iter().any(matches)
    }

    #[test]
    fn each_class_allows_the_requests_that_its_libraries_make() {
        for (class, name, requests) in [
            // VIDIOC_QUERYCAP, MEDIA_IOC_DEVICE_INFO, DMA_BUF_IOCTL_SYNC
            (
                &VIDEO4LINUX_DEVICE_CLASS,
                "video",
                [0x8068_5600, 0xc100_7c00, 0x4008_6200],
            ),
            // DRM_IOCTL_VERSION, DRM_IOCTL_GEM_CLOSE, DRM_IOCTL_PRIME_HANDLE_TO_FD
            (
                &GRAPHICS_DEVICE_CLASS,
                "graphics",
                [0xc040_6400, 0x4008_6409, 0xc00c_642d],
            ),
            // SNDRV_CTL_IOCTL_CARD_INFO, SNDRV_PCM_IOCTL_HW_PARAMS, SNDRV_TIMER_IOCTL_PARAMS
            (&SOUND_DEVICE_CLASS, "sound", [0x8178_5501, 0xc260_4111, 0x4050_5412]),
            // SNDRV_PCM_IOCTL_START, SNDRV_TIMER_IOCTL_START, SNDRV_TIMER_IOCTL_PVERSION
            (&SOUND_DEVICE_CLASS, "sound", [0x4142, 0x54a0, 0x8004_5400]),
            // NV_ESC_CARD_INFO, UVM_INITIALIZE, UVM_MAP_EXTERNAL_ALLOCATION
            (&NVIDIA_DEVICE_CLASS, "nvidia", [0xc900_46c8, 0x3000_0001, 33]),
            // FE_GET_INFO, FE_SET_PROPERTY, DMX_START
            (&DVB_DEVICE_CLASS, "dvb", [0x80a8_6f3d, 0x4010_6f52, 0x6f29]),
        ] {
            for request in requests {
                assert!(allows(class, request), "{name}: {request:#x}");
            }
        }
    }

    #[test]
    fn no_class_allows_to_type_on_terminals_or_to_have_others_signalled() {
        for class in ALL_DEVICE_CLASSES {
            // TIOCSTI, TIOCLINUX, TIOCSETD, FIOASYNC, FIOSETOWN, SIOCSPGRP
            for request in [0x5412, 0x541c, 0x5423, 0x5452, 0x8901, 0x8902] {
                assert!(!allows(class, request), "{request:#x}: {:?}", class.prefixes);
            }
        }
    }

    #[test]
    fn folders_of_devices_are_devices_and_the_folder_of_all_is_not() {
        for (path, expected) in [
            ("/dev/null", true),
            ("/dev/shm", true),
            ("/dev", false),
            ("/etc", false),
            ("/dev/nothing-like-it", false),
        ] {
            assert_eq!(is_device_or_device_folder(Path::new(path)), expected, "{path}");
        }
    }
}
