//! The command lines of a virtual machine's two processes. Pure.

use std::path::{Path, PathBuf};

use crate::ImageArgs;

/// Where QEMU's packages put virtiofsd.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// What a machine is made of.
#[derive(Debug, Clone)]
pub(crate) struct Hardware {
    /// Its name, which becomes its host name.
    pub(crate) name: String,
    /// Its memory in MiB.
    pub(crate) memory: u32,
    /// Its plug on the wire, if it has one.
    pub(crate) plug: Option<Plug>,
}

/// A network card and the loopback socket that is its cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plug {
    /// The last byte of the card's MAC.
    pub(crate) number: u8,
    /// The loopback port that the wire listens on.
    pub(crate) port: u16,
}

/// The name of the network card's cable in QEMU's monitor.
pub(crate) const CABLE: &str = "wire";

/// The sockets of a machine, all in its directory.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    /// Of virtiofsd.
    pub(crate) files: PathBuf,
    /// Of QEMU's monitor.
    pub(crate) monitor: PathBuf,
    /// Of the second serial port.
    pub(crate) port: PathBuf,
}

impl Sockets {
    /// The sockets in a machine's directory.
    pub(crate) fn of(dir: &Path) -> Self {
        Self {
            files: dir.join("files"),
            monitor: dir.join("monitor"),
            port: dir.join("port"),
        }
    }
}

/// The program that shows the host's files to a machine.
pub(crate) fn virtiofsd() -> PathBuf {
    let found = VIRTIOFSD.iter().map(Path::new).find(|path| path.exists());
    found.unwrap_or(Path::new(VIRTIOFSD[0])).to_owned()
}

/// The arguments of virtiofsd.
pub(crate) fn virtiofsd_args(sockets: &Sockets) -> Vec<String> {
    vec![
        format!("--socket-path={}", sockets.files.display()),
        "-o".into(),
        // The host's files do not change under a running machine.
        "source=/,cache=always,sandbox=chroot".into(),
        // Raising the limit takes a capability that not every root has.
        "--rlimit-nofile=0".into(),
        "--thread-pool-size=1".into(),
        "-f".into(),
    ]
}

/// What the kernel is told: a panic ends the machine; a host that is busy for a second is
/// no broken timer and no stalled processor; and addresses are not random, which is what
/// emulation's speed depends on: translated code is kept by its virtual address, so with
/// random ones every process that starts has all libraries translated anew (29 ms for
/// `true`, otherwise 9; 115 ms for the agent's `--version`, otherwise 20).
const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off nokaslr \
                           norandmaps init_on_alloc=0 no_timer_check nowatchdog \
                           rcupdate.rcu_cpu_stall_suppress=1";

/// One processor: a second one makes what is emulated dearer by half (locked
/// instructions, calls between processors, no TSC as the clock), so machines side by side
/// do more in the same time.
const PROCESSORS: &str = "1";

/// The arguments of QEMU. What they avoid: emulated AVX makes WireGuard three times
/// slower, `cx16` faults doubly under load with QEMU 7.2.
pub(crate) fn qemu_args(
    image: &ImageArgs,
    hardware: &Hardware,
    sockets: &Sockets,
    dir: &Path,
) -> Vec<String> {
    let memory = hardware.memory;
    let mut args: Vec<String> = [
        "-M",
        "pc,memory-backend=mem",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max,-la57,-cx16,-avx,-avx2",
        // Unlike -nographic, this keeps the BIOS off the console.
        "-display",
        "none",
        "-nodefaults",
        "-no-reboot",
        "-serial",
        "stdio",
        "-serial",
        "chardev:port",
        "-device",
        "vhost-user-fs-pci,chardev=files,tag=hostroot",
    ]
    .map(str::to_owned)
    .into();
    let socket = |id: &str, path: &Path| format!("socket,id={id},path={}", path.display());
    let server = |id: &str, path: &Path| format!("{},server=on,wait=off", socket(id, path));
    for (flag, value) in [
        ("-smp", PROCESSORS.to_owned()),
        ("-m", memory.to_string()),
        (
            "-object",
            format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
        ),
        ("-chardev", socket("files", &sockets.files)),
        ("-chardev", server("port", &sockets.port)),
        ("-chardev", server("monitor", &sockets.monitor)),
        ("-mon", "chardev=monitor,mode=readline".to_owned()),
        (
            "-kernel",
            image.kernel.join("vmlinuz").display().to_string(),
        ),
        ("-initrd", image.initramfs.display().to_string()),
        (
            "-append",
            format!("{KERNEL_ARGS} viaduct.dir={}", dir.display()),
        ),
    ] {
        args.extend([flag.to_owned(), value]);
    }
    if let Some(Plug { number, port }) = hardware.plug {
        args.extend([
            "-netdev".to_owned(),
            format!("socket,id={CABLE},connect=127.0.0.1:{port}"),
            "-device".to_owned(),
            format!("virtio-net-pci,netdev={CABLE},mac=52:54:00:87:00:{number:02x},romfile="),
        ]);
    }
    args
}
