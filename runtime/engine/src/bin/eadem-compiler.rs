//! The compiling child as a program of its own, for tests and for hosts that want it separate.

fn main() -> std::process::ExitCode {
    eadem_engine::compiler::child_main()
}
