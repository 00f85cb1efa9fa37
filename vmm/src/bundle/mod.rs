//! The archive of `strait report`: text files with everything personal taken out.

pub(crate) mod redact;

use std::{
    io::{self, Write},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

use redact::Redactor;

/// One file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    /// Its path in there.
    pub(crate) name: String,
    /// One line: what it is.
    pub(crate) about: &'static str,
    pub(crate) text: String,
}

/// Files on their way into an archive. What gets in here has gone through the redactor: there is no other way in.
pub(crate) struct Bundle {
    redactor: Redactor,
    documents: Vec<Document>,
}

impl Bundle {
    pub(crate) fn new(redactor: Redactor) -> Self {
        Self { redactor, documents: Vec::new() }
    }

    pub(crate) fn add_text(&mut self, name: impl Into<String>, about: &'static str, text: &str) {
        let text = self.redactor.text(text);
        self.documents.push(Document { name: name.into(), about, text });
    }

    /// Every string in it goes through the redactor by itself, so that it stays JSON.
    pub(crate) fn add_json(
        &mut self,
        name: impl Into<String>,
        about: &'static str,
        mut value: Value,
    ) {
        self.redactor.json(&mut value);
        let text = format!("{value:#}\n");
        self.documents.push(Document { name: name.into(), about, text });
    }

    /// What was replaced, as `2 MAC addresses`.
    pub(crate) fn replaced(&self) -> Vec<String> {
        self.redactor.counts()
    }

    pub(crate) fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// Writes all of it, a list first, as a compressed tar archive.
    pub(crate) fn write(&self, to: impl Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        let list = Document { name: "README.txt".into(), about: "", text: self.list() };
        for document in std::iter::once(&list).chain(&self.documents) {
            let mut header = tar::Header::new_ustar();
            // Neither names nor times of this host.
            header.set_mode(0o644);
            header.set_size(document.text.len() as u64);
            let path = Path::new("strait-report").join(&document.name);
            archive.append_data(&mut header, path, document.text.as_bytes())?;
        }
        archive.into_inner()?.finish()?.flush()
    }

    fn list(&self) -> String {
        let mut text = format!("A report of strait {}.\n\n", env!("CARGO_PKG_VERSION"));
        for document in &self.documents {
            text.push_str(&format!("{:24}  {}\n", document.name, document.about));
        }
        text.push_str("\nReplaced: ");
        text.push_str(&match self.replaced() {
            none if none.is_empty() => "nothing".to_owned(),
            replaced => replaced.join(", "),
        });
        text.push_str(".\nThe same name stands for the same thing everywhere.\n");
        text
    }
}
