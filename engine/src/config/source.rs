//! Where a configuration comes from: a file, the environment, or both.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::environment::Environment;
use super::problems::{NAME_A_FILE, Origin, Problems};
use super::syntax::Syntax;
use super::{Config, Effective, rules};

/// How often the configuration is tried at the start while nothing but its certificates is wrong
/// (contract CF-1), and the time between.
const START_TRIES: u32 = 5;
const START_PAUSE: Duration = Duration::from_millis(500);

/// The source of a configuration. The file is read anew each time. The environment does not change,
/// and overrides the file.
#[derive(Clone, Debug)]
pub struct Source {
    file: Option<PathBuf>,
    environment: Environment,
}

impl Source {
    /// A source made of the environment, and of a file if one is given.
    #[must_use]
    pub fn new(file: Option<PathBuf>, environment: Environment) -> Self {
        Self { file, environment }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Whether there is a file, or a variable that names a mode; they may be wrong.
    #[must_use]
    pub fn is_given(&self) -> bool {
        let variables = [super::control::MODE, super::reference::API];
        self.file.is_some() || variables.into_iter().any(|name| self.environment.has(name))
    }

    /// For messages: the file's name, or `environment`.
    #[must_use]
    pub fn name(&self) -> String {
        self.problems().file().into()
    }

    fn problems(&self) -> Problems {
        match &self.file {
            Some(file) => Problems::new(&file.display().to_string()),
            None => Problems::of_environment(),
        }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> Result<Config, Problems> {
        let (text, folder, problems) = self.read()?;
        rules::checked(&text, folder, &self.environment, problems)
    }

    /// The file's text, and the folder to which its paths are relative.
    fn read(&self) -> Result<(String, &Path, Problems), Problems> {
        let mut problems = self.problems();
        let Some(file) = &self.file else {
            return Ok((String::new(), Path::new(""), problems));
        };
        if Syntax::of(problems.file()).is_none() {
            let text = "cannot be read: its name says neither TOML nor YAML; it must end in .toml, .yaml or .yml";
            problems.add(None::<Origin>, text);
            return Err(problems);
        }
        match std::fs::read_to_string(file) {
            Ok(text) => Ok((text, folder_of(file), problems)),
            Err(error) => {
                problems.add(None::<Origin>, format!("cannot be read: {error}; {NAME_A_FILE}"));
                Err(problems)
            }
        }
    }

    /// Every setting with its value and where that comes from; secrets are not shown.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn effective(&self) -> Result<Vec<Effective>, Problems> {
        let (text, folder, problems) = self.read()?;
        rules::effective(&text, folder, &self.environment, problems)
    }

    /// The secrets that the configuration holds or names, even if it is wrong. They must be taken
    /// out of everything that is shown.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let file = self.file.as_deref();
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let folder = file.map_or(Path::new(""), folder_of);
        rules::secrets(&text, folder, &self.environment, self.problems())
    }

    /// As [`Self::load`], at the start: certificates that somebody is still writing are waited for.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_patiently(&self) -> Result<Config, Problems> {
        for _ in 1..START_TRIES {
            match self.load() {
                Err(problems) if problems.may_pass() => std::thread::sleep(START_PAUSE),
                loaded => return loaded,
            }
        }
        self.load()
    }
}

/// The folder to which a configuration's paths are relative.
fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}
