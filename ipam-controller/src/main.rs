//! viaduct-controller: all of it is in the library.

fn main() -> std::process::ExitCode {
    viaduct_controller::main()
}
