//! A GPU with a DRM driver in the stock kernel: QEMU's virtio-gpu, which L0 can take a picture of.

use crate::{
    hosts::HostKind,
    picture::Picture,
    scenario::{Scenario, Vm},
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![picture()]
}

/// The one that the demo shows.
pub(crate) fn picture() -> Scenario {
    Scenario::new("gpu-picture", HostKind::Main, "the guest's console appears on the passed GPU")
        .vm(Vm::new("a", "draw,strait_passed_this_GPU_to_a_guest;pci;irqs;sleep,8")
            .device("gpu")
            .modules(&["virtio_pci", "virtio_gpu"]))
        .script(
            "bind {all}\n\
             vm_a &\n\
             wait_mark a drawn 100 || exit 1\n\
             sleep 2\n\
             signal screendump gpu picture.ppm\n\
             wait\n",
        )
        .reports("a", "display.driver", "virtio_gpu")
        .check(|outcome| {
            let picture = Picture::read(&outcome.job.join("picture.ppm"));
            picture.map_err(|error| format!("{error:#}"))?.shows_text().map(drop)
        })
}
