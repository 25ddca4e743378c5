//! The executable: dispatches to the command line.

fn main() -> std::process::ExitCode {
    // The shim and the built-in web server must not start any thread, so they come before everything else.
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == "shim" => amphipod::containers::shim_main(rest),
        Some((command, _)) if command == "hello" => amphipod::containers::hello_main(),
        _ => amphipod::cli::main(),
    }
}
