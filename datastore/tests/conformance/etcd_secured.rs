//! TLS, client certificates, users and passwords, against a real etcd.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use viaduct_datastore::{StoreError, StoreOptions, open};
use viaduct_model::Kind;

use crate::etcd_process::Etcd;
use crate::follower::{eventually, picture, until};

/// An authority and what it signed, made by openssl.
struct Certificates {
    dir: TempDir,
}

impl Certificates {
    fn new() -> Self {
        let certificates = Self {
            dir: TempDir::new().unwrap(),
        };
        for authority in ["ca", "stranger"] {
            certificates.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
                 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
            ));
        }
        let extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(certificates.path("extensions"), extensions).unwrap();
        for name in ["server", "client"] {
            certificates.openssl(&format!(
                "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
                 -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            certificates.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                 -extfile extensions -out {name}.pem"
            ));
        }
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn openssl(&self, args: &str) {
        let output = Command::new("openssl")
            .args(args.split_whitespace())
            .current_dir(self.dir.path())
            .output()
            .expect("the program openssl (Debian: openssl)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {args}: {said}");
    }
}

/// An etcd with TLS and client certificates, and users when `users` says so.
struct Secured {
    etcd: Arc<Etcd>,
    certificates: Certificates,
}

impl Secured {
    fn start() -> Self {
        let certificates = Certificates::new();
        let etcd = Etcd::start_with(vec![
            format!("--cert-file={}", certificates.text("server.pem")),
            format!("--key-file={}", certificates.text("server.key")),
            format!("--trusted-ca-file={}", certificates.text("ca.pem")),
            "--client-cert-auth".into(),
        ]);
        Self { etcd, certificates }
    }

    fn ctl(&self, args: &str) {
        let (ca, cert, key) = (
            self.certificates.text("ca.pem"),
            self.certificates.text("client.pem"),
            self.certificates.text("client.key"),
        );
        let mut all = vec!["--cacert", &ca, "--cert", &cert, "--key", &key];
        all.extend(args.split_whitespace());
        self.etcd.ctl(&all);
    }

    fn add_users(&self) {
        self.ctl("user add root:rootpw");
        self.ctl("role add viaduct");
        self.ctl("role grant-permission viaduct readwrite --prefix=true /viaduct/");
        self.ctl("user add viaduct:first-secret");
        self.ctl("user grant-role viaduct viaduct");
        self.ctl("auth enable");
    }

    fn options(&self) -> StoreOptions {
        StoreOptions {
            url: self.etcd.url(),
            etcd_ca: Some(self.certificates.path("ca.pem")),
            etcd_cert: Some(self.certificates.path("client.pem")),
            etcd_key: Some(self.certificates.path("client.key")),
            ..StoreOptions::default()
        }
    }

    fn signed_in(&self, password: &Path) -> StoreOptions {
        StoreOptions {
            etcd_username: Some("viaduct".into()),
            etcd_password_file: Some(password.into()),
            ..self.options()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_proves_both_sides() {
    let secured = Secured::start();
    let store = open(&secured.options()).await.unwrap();
    assert!(store.describe().starts_with("etcds://"));
    let mut seen = picture(store.clone(), Kind::Pool);
    store.create(Kind::Pool, "a", b"1", None).await.unwrap();
    until(&mut seen, "watched over TLS", |p| p.len() == 1).await;

    let stranger = StoreOptions {
        etcd_ca: Some(secured.certificates.path("stranger.pem")),
        ..secured.options()
    };
    let refused = open(&stranger).await.unwrap().list(Kind::Pool).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("certificate"), "{said}");
    let nobody = StoreOptions {
        etcd_cert: None,
        etcd_key: None,
        ..secured.options()
    };
    open(&nobody)
        .await
        .unwrap()
        .list(Kind::Pool)
        .await
        .expect_err("no certificate, no answer");
    let plain = StoreOptions {
        url: format!("etcd://{}", secured.etcd.host()),
        ..StoreOptions::default()
    };
    open(&plain)
        .await
        .unwrap()
        .list(Kind::Pool)
        .await
        .expect_err("no TLS, no answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_read_again_when_it_changes_and_tokens_run_out() {
    let secured = Secured::start();
    secured.add_users();
    let password = secured.certificates.path("password");
    std::fs::write(&password, "first-secret\n").unwrap();
    let store = open(&secured.signed_in(&password)).await.unwrap();
    store.create(Kind::Pool, "a", b"1", None).await.unwrap();
    let mut seen = picture(store.clone(), Kind::Pool);
    until(&mut seen, "watched as a user", |p| p.len() == 1).await;
    let lease = store.grant_lease(Duration::from_secs(30)).await.unwrap();
    store
        .create(Kind::Claim, "c", b"1", Some(&lease))
        .await
        .unwrap();
    store.keep_alive(&lease).await.unwrap();
    assert!(
        store
            .lease_remaining(Kind::Claim, "c")
            .await
            .unwrap()
            .is_some()
    );
    store.revoke_lease(&lease).await.unwrap();
    // The token lives for 2 s here.
    tokio::time::sleep(Duration::from_secs(5)).await;
    store.create(Kind::Pool, "b", b"1", None).await.unwrap();
    until(&mut seen, "the watch outlives the token", |p| p.len() == 2).await;

    let elsewhere = StoreOptions {
        etcd_prefix: Some("/elsewhere".into()),
        ..secured.signed_in(&password)
    };
    let refused = open(&elsewhere).await.unwrap().list(Kind::Pool).await;
    assert!(
        matches!(refused, Err(StoreError::Refused { .. })),
        "{refused:?}"
    );

    // The password changes on the server first: refused, then the file follows.
    secured.ctl("--user root:rootpw user delete viaduct");
    secured.ctl("--user root:rootpw user add viaduct:second-secret");
    secured.ctl("--user root:rootpw user grant-role viaduct viaduct");
    eventually("the old password is refused", async || {
        matches!(
            store.list(Kind::Pool).await,
            Err(StoreError::Refused { .. })
        )
        .then_some(())
    })
    .await;
    std::fs::write(&password, "second-secret\n").unwrap();
    store.create(Kind::Pool, "c", b"1", None).await.unwrap();
    until(&mut seen, "the follower comes through", |p| p.len() == 3).await;
}

#[tokio::test]
async fn a_password_is_shown_nowhere() {
    let secured = Secured::start();
    secured.add_users();
    let said = Said::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer({
            let said = said.clone();
            move || said.clone()
        })
        .finish();
    // One thread only, so that everything that happens is heard.
    let _listening = tracing::subscriber::set_default(subscriber);
    let password = secured.certificates.path("password");
    for (text, good) in [("wrong-secret", false), ("first-secret", true)] {
        std::fs::write(&password, text).unwrap();
        let options = secured.signed_in(&password);
        let store = open(&options).await.unwrap();
        let outcome = store.list(Kind::Pool).await;
        assert_eq!(outcome.is_ok(), good, "{outcome:?}");
        let shown = format!(
            "{options:?} {store:?} {} {outcome:?} {:?}",
            store.describe(),
            store.connectivity()
        );
        assert!(!shown.contains("secret"), "{shown}");
    }
    let log = String::from_utf8_lossy(&said.0.lock().unwrap()).into_owned();
    assert!(log.contains("does not answer"), "the log is heard");
    assert!(!log.contains("first-secret") && !log.contains("wrong-secret"));
}

/// What was logged.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn flags_that_do_not_fit_are_refused_at_once() {
    let absent = PathBuf::from("/does/not/exist");
    let base = || StoreOptions {
        url: "etcds://127.0.0.1:1".into(),
        ..StoreOptions::default()
    };
    let cases = [
        (base(), "--etcd-ca"),
        (
            StoreOptions {
                etcd_ca: Some(absent.clone()),
                ..base()
            },
            "--etcd-ca",
        ),
        (
            StoreOptions {
                url: "etcd://127.0.0.1:1".into(),
                etcd_cert: Some(absent.clone()),
                ..base()
            },
            "--etcd-cert",
        ),
        (
            StoreOptions {
                url: "etcd://127.0.0.1:1".into(),
                etcd_username: Some("u".into()),
                ..base()
            },
            "--etcd-username",
        ),
        (
            StoreOptions {
                url: "etcd://127.0.0.1:1".into(),
                etcd_username: Some("u".into()),
                etcd_password_file: Some(absent),
                ..base()
            },
            "--etcd-password-file",
        ),
        (
            StoreOptions {
                url: "etcd://127.0.0.1:1".into(),
                etcd_prefix: Some("viaduct".into()),
                ..base()
            },
            "--etcd-prefix",
        ),
    ];
    for (options, flag) in cases {
        let refused = open(&options).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid(_)), "{refused:?}");
        assert!(refused.to_string().contains(flag), "{refused}");
    }
}
