//! The GPU device plugin's binary: parse, telemetry, one match over the command.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use creo_gpu_device_plugin::arguments::{
    Arguments, CanaryArguments, Command, InventoryArguments, Output,
};
use creo_gpu_device_plugin::{canary, driver, serve};
use creo_process::{shutdown, telemetry};
use tokio::runtime::{Builder, Runtime};

/// What the inventory exits with where there is no driver.
const NO_DRIVER: u8 = 3;
/// How long the driver may take to say what it has: the first question may wake the GPUs.
const INVENTORY_LIMIT: Duration = Duration::from_mins(1);
/// How long work of the runtime that cannot be stopped may hold up the end.
const END: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    // Two threads: what one waits for on a slow disk does not hold up the other.
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = match arguments.command {
        Command::Serve(arguments) => {
            telemetry::init(&arguments.log)?;
            runtime.block_on(async {
                let stop = shutdown::on_signal()?;
                serve::serve(*arguments, stop).await?;
                Ok(ExitCode::SUCCESS)
            })
        }
        Command::Config(arguments) => {
            let node_name = arguments.node_name.as_deref();
            let config = arguments.config.source(node_name).read()?;
            std::io::stdout().write_all(config.to_string().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Inventory(arguments) => inventory(&runtime, &arguments),
        Command::Canary(arguments) => look(&arguments),
    };
    runtime.shutdown_timeout(END);
    result
}

/// Whatever was found, it was found: only what cannot be said is a failure.
fn look(arguments: &CanaryArguments) -> Result<ExitCode, Box<dyn Error>> {
    let found = serde_json::to_string(&canary::look(&arguments.dev))?;
    std::fs::write(&arguments.termination_log, &found)?;
    println!("{found}");
    Ok(ExitCode::SUCCESS)
}

fn inventory(
    runtime: &Runtime,
    arguments: &InventoryArguments,
) -> Result<ExitCode, Box<dyn Error>> {
    let source = arguments.driver.source();
    let inventory = match runtime.block_on(driver::inventory(&source, INVENTORY_LIMIT)) {
        Ok(inventory) => inventory,
        Err(why) => {
            eprintln!("{why}");
            return Ok(ExitCode::from(NO_DRIVER));
        }
    };
    let text = match arguments.output {
        Output::Table => inventory.table(),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&inventory)?),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
