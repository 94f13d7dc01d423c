package streamcmd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
)

// service is a command that runs until it is stopped.
type service struct {
	t              *testing.T
	stdout, stderr said
	stop           func() (code int)
}

// said is what a command has written so far.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// start runs a command line in the background, at most until the test ends.
func start(t *testing.T, args ...string) *service {
	t.Helper()
	s := &service{t: t}
	root := newProgram()
	root.SetArgs(args)
	root.SetOut(&s.stdout)
	root.SetErr(&s.stderr)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan int, 1)
	go func() { ended <- commandline.Execute(ctx, root) }()
	s.stop = sync.OnceValue(func() int { cancel(); return <-ended })
	t.Cleanup(func() {
		if code := s.stop(); code != 0 {
			t.Errorf("%v ended with exit code %d", args, code)
		}
		if t.Failed() {
			t.Logf("%v:\n%s", args, &s.stderr)
		}
	})
	return s
}

// eventually waits for what a service does.
func (s *service) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// serving starts levada stream serve, and returns its address.
func serving(t *testing.T, flags ...string) (s *service, address string) {
	t.Helper()
	s = start(t, append([]string{"stream", "serve", "--listen", "127.0.0.1:0", "-o", "json"}, flags...)...)
	var up struct{ Address string }
	s.eventually("it serves", func() bool { return json.Unmarshal([]byte(s.stdout.String()), &up) == nil })
	return s, up.Address
}

// submitted submits a job to a new store.
func submitted(t *testing.T, streamName, address string) (store, job string) {
	t.Helper()
	store = filepath.Join(t.TempDir(), "jobs.db")
	o := levada(t, "stream", "submit", streamName, "--store", store, "--target", address)
	if o.Code != 0 {
		t.Fatal(o)
	}
	return store, strings.TrimSpace(o.Stdout)
}

func shown(t *testing.T, store, job string) (status stream.Status) {
	t.Helper()
	o := levada(t, "stream", "show", job, "--store", store, "-o", "json")
	if err := json.Unmarshal([]byte(o.Stdout), &status); err != nil {
		t.Fatalf("%v: %+v", err, o)
	}
	return status
}

// With --horizon a stream waits for a row whose transaction is not over, and then has all rows in the order of their transactions.
func TestStreamServeHorizon(t *testing.T) {
	dsn := testserver.Postgres(t)
	var sessions [2]*pgx.Conn
	for i := range sessions {
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		sessions[i] = conn
	}
	conn, late := sessions[0], sessions[1]
	do := func(conn *pgx.Conn, sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	do(conn, `create table events (id bigint primary key, xid xid8 not null default pg_current_xact_id()); create index on events (xid, id)`)
	do(conn, `insert into events values (5)`)
	do(late, `begin; insert into events values (1)`)
	do(conn, `insert into events values (2)`)

	_, address := serving(t, "--postgres", dsn, "--table", "events=events", "--horizon", "xid")
	store, job := submitted(t, "events", address)
	worker := start(t, "stream", "work", "--store", store, "--stream", "events", "--print")
	printed := func() (ids []int) {
		for decoder := json.NewDecoder(strings.NewReader(worker.stdout.String())); ; {
			var line struct{ Value string }
			var row struct{ ID int }
			if decoder.Decode(&line) != nil {
				return ids
			}
			if err := json.Unmarshal([]byte(line.Value), &row); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, row.ID)
		}
	}
	worker.eventually("the first row comes", func() bool { return len(printed()) > 0 })
	if ids := printed(); !slices.Equal(ids, []int{5}) {
		t.Errorf("while a transaction is open: rows %v, want row 5 alone", ids)
	}
	do(late, `commit`)
	worker.eventually("the job is complete", func() bool { return shown(t, store, job).State == stream.Completed })
	if ids := printed(); !slices.Equal(ids, []int{5, 1, 2}) {
		t.Errorf("rows %v, want 5, 1, 2", ids)
	}
}

func TestStreamServeTLS(t *testing.T) {
	dir := t.TempDir()
	file, cert, key := filepath.Join(dir, "lines"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if err := os.WriteFile(file, []byte("one\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	writeCertificate(t, cert, key)
	flags := []string{"--file", "lines=" + file, "--tls-cert", cert, "--tls-key", key}
	// healthy asks the server how it is.
	healthy := func(address string, transport credentials.TransportCredentials) error {
		t.Helper()
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(transport))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err
	}

	t.Run("the server's certificate", func(t *testing.T) {
		_, address := serving(t, flags...)
		store, job := submitted(t, "lines", address)
		if o := levada(t, "stream", "work", "--store", store, "--stream", "lines", "--print", "--until-done", "--ca", cert); o.Code != 0 || strings.Count(o.Stdout, "\n") != 3 {
			t.Errorf("%+v", o)
		}
		if o := levada(t, "stream", "verify", job, "--checkpoint-only", "--store", store, "--ca", cert); o.Code != 0 {
			t.Errorf("%+v", o)
		}
		if healthy(address, insecure.NewCredentials()) == nil {
			t.Error("the server answers without TLS")
		}
		if healthy(address, credentials.NewTLS(&tls.Config{})) == nil {
			t.Error("a reader that does not know the server's certificate is content with it")
		}
	})
	t.Run("the readers' certificates", func(t *testing.T) {
		reader, readerKey := filepath.Join(dir, "reader.crt"), filepath.Join(dir, "reader.key")
		other, otherKey := filepath.Join(dir, "other.crt"), filepath.Join(dir, "other.key")
		writeCertificate(t, reader, readerKey)
		writeCertificate(t, other, otherKey)
		_, address := serving(t, append(flags, "--tls-client-ca", reader)...)
		store, job := submitted(t, "lines", address)
		work := []string{"stream", "work", "--stream", "lines", "--print", "--ca", cert}
		trusted := []string{"--tls-cert", reader, "--tls-key", readerKey}
		if o := levada(t, slices.Concat(work, trusted, []string{"--store", store, "--until-done"})...); o.Code != 0 || strings.Count(o.Stdout, "\n") != 3 {
			t.Errorf("%+v", o)
		}
		if o := levada(t, slices.Concat([]string{"stream", "verify", job, "--checkpoint-only", "--store", store, "--ca", cert}, trusted)...); o.Code != 0 {
			t.Errorf("%+v", o)
		}
		const demanded = "tls: certificate required: the producer demands one of its readers: give --tls-cert and --tls-key"
		for name, c := range map[string]struct {
			flags []string
			want  string
		}{
			"no certificate":         {[]string{"--ca", cert}, demanded},
			"of another authority":   {[]string{"--ca", cert, "--tls-cert", other, "--tls-key", otherKey}, "authority: the producer refuses the certificate of --tls-cert " + other},
			"the producer's unknown": {slices.Concat(trusted, []string{"--ca", other}), "certificate signed by unknown authority: name the file of its authority with --ca"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // a person who verifies waits a few seconds for the producer
				o := levada(t, slices.Concat([]string{"stream", "verify", job, "--store", store}, c.flags)...)
				if o.Code != commandline.ExitProblems || !strings.Contains(o.Stderr, c.want) {
					t.Errorf("%+v, want exit code 1 and %q", o, c.want)
				}
			})
		}
		t.Run("the refusal comes while the reader sends", func(t *testing.T) {
			transport, err := (&connect.ProducerFlags{CA: cert}).Credentials()
			if err != nil {
				t.Fatal(err)
			}
			raw, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			conn, _, err := transport.ClientHandshake(t.Context(), address, raw)
			for deadline := time.Now().Add(30 * time.Second); err == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				_, err = conn.Write([]byte("x"))
			}
			if err == nil || !strings.Contains(err.Error(), demanded) {
				t.Errorf("%v, want %q", err, demanded)
			}
		})
		t.Run("work without a certificate", func(t *testing.T) {
			store, job := submitted(t, "lines", address)
			worker := start(t, append(work, "--store", store)...)
			worker.eventually("the worker says what is missing", func() bool { return strings.Contains(worker.stderr.String(), demanded) })
			if status := shown(t, store, job); status.State == stream.Completed || worker.stdout.String() != "" {
				t.Errorf("the job is %s, and the worker has printed %q", status.State, worker.stdout.String())
			}
		})
	})
}

// writeCertificate makes a certificate for 127.0.0.1 that is its own authority, for servers and clients.
func writeCertificate(t *testing.T, cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: filepath.Base(cert)}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600)); err != nil {
		t.Fatal(err)
	}
}
