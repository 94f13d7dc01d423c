//go:build unix

package redis_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/redis"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/testredis"
	"github.com/levada-io/levada/internal/testserver"
)

// all is what the docs tell users to grant.
const all = "~levada:* +@all -@dangerous +info +config|get"

// A server that cannot be used is one error with what to do, before anything is read or written.
func TestServerThatCannotBeUsedIsOneError(t *testing.T) {
	s := testredis.Server(t)
	admin := dial(t, s.DSN()).Client
	host := strings.TrimPrefix(s.DSN(), "redis://")
	for name, rules := range map[string]string{
		"good": all, "noxtrim": all + " -xtrim", "noinfo": all + " -info", "nokeys": "~other:* +@all", "noscripts": all + " -@scripting", "nozset": all + " -zadd",
	} {
		args := []any{"acl", "setuser", name, "on", ">pw"}
		for rule := range strings.FieldsSeq(rules) {
			args = append(args, rule)
		}
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	talks := listener(t, "HTTP/1.1 400 Bad Request\r\n\r\n")
	silent := testredis.Server(t, testredis.Settings("requirepass secret"))
	for _, c := range []struct{ name, url, want string }{
		{"a user without XTRIM", "redis://noxtrim:pw@" + host, "'xtrim' command"},
		{"a user without INFO", "redis://noinfo:pw@" + host, "'info' command"},
		{"a user without ZADD", "redis://nozset:pw@" + host, "'zadd' command"},
		{"a user without scripts", "redis://noscripts:pw@" + host, "'evalsha' command"},
		{"a user without the keys", "redis://nokeys:pw@" + host, "~levada:*"},
		{"a wrong password", "redis://good:wrong@" + host, "user or password are wrong"},
		{"no password", silent.DSN(), "--redis-password-file"},
		{"a database that is not there", s.DSN() + "/99", "give a smaller number"},
		{"another program", "redis://" + talks, "no Redis server"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			service, err := redis.Connect(t.Context(), redis.Config{Link: redislink.Config{Address: address(t, c.url)}})
			if err == nil {
				service.Close()
				t.Fatal("it is used")
			}
			if text := err.Error(); !strings.Contains(text, c.want) || strings.Contains(text, "pw@") || strings.Contains(text, "wrong@") || strings.Contains(text, "\n") {
				t.Errorf("the error is %q, want %q in it", text, c.want)
			}
		})
	}
	t.Run("with these permissions everything works", func(t *testing.T) {
		t.Parallel()
		service := connect(t, "redis://good:pw@"+host)
		defer service.Close()
		store, err := service.Open(t.Context(), isb.Request{Owner: owner("p")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.DeadLetters(t.Context()); err != nil {
			t.Error(err)
		}
		d, err := store.OpenPartition(t.Context(), "cat", 0, isb.Settings{})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Resume(t.Context(), 0); err != nil {
			t.Error(err)
		}
		if err := d.SaveState(t.Context(), []byte("s")); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Connections are encrypted and the server is verified. Each mistake is one error that says which flag is wrong.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certificate, pool := issue(t, dir)
	host := testserver.FreeAddress(t)
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		t.Fatal(err)
	}
	s := testredis.Server(t, testredis.Settings(fmt.Sprintf("tls-port %s\ntls-cert-file %[2]s/cert.pem\ntls-key-file %[2]s/key.pem\ntls-ca-cert-file %[2]s/cert.pem", port, dir)))
	plain := strings.TrimPrefix(s.DSN(), "redis://")
	for _, c := range []struct {
		name, url string
		tls       *tls.Config
		want      string
	}{
		{"all given", "rediss://" + host, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificate}}, ""},
		{"no CA", "rediss://" + host, &tls.Config{Certificates: []tls.Certificate{certificate}}, "--redis-ca"},
		{"no certificate", "rediss://" + host, &tls.Config{RootCAs: pool}, "--redis-cert"},
		{"no TLS", "redis://" + host, nil, "rediss://"},
		{"TLS to a port without it", "rediss://" + plain, &tls.Config{RootCAs: pool}, "redis://"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := address(t, c.url)
			a.TLS = c.tls
			service, err := redis.Connect(t.Context(), redis.Config{Link: redislink.Config{Address: a}})
			if err == nil {
				service.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("the error is %v, want %q in it", err, c.want)
			}
		})
	}
}

func owner(name string) naming.Owner {
	return naming.Owner{Namespace: "ns", Kind: naming.Pipeline, Name: name}
}

// listener answers every connection with a text.
func listener(t *testing.T, text string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(text))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

// issue writes cert.pem and key.pem for 127.0.0.1 into dir.
func issue(t *testing.T, dir string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "levada-test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return pair, pool
}

// What a server does not promise is said once at the start, and kept for the line about durability.
func TestRisksAreSaidAtTheStart(t *testing.T) {
	for _, c := range []struct{ settings, want string }{
		{"", ""}, {"appendfsync everysec", "up to two seconds"}, {"appendonly no", "appendonly is off"},
	} {
		t.Run(c.settings, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			s := testredis.Server(t, testredis.Settings(c.settings))
			service, err := redis.Connect(t.Context(), redis.Config{Link: redislink.Config{Address: address(t, s.DSN()), Logger: slog.New(slog.NewTextHandler(&log, nil))}})
			if err != nil {
				t.Fatal(err)
			}
			defer service.Close()
			risks := strings.Join(service.Risks(), "\n")
			if lines := strings.Count(log.String(), "\n"); !strings.Contains(risks, c.want) || (c.want == "") != (risks == "") || lines != len(service.Risks()) {
				t.Errorf("risks %q, log %q", risks, &log)
			}
		})
	}
}

// A place that was there and is gone is a loss: the sources would be read from their start.
func TestLostPlaceIsNotCreatedAgain(t *testing.T) {
	s := testredis.Server(t)
	service := connect(t, s.DSN())
	defer service.Close()
	if _, err := service.Open(t.Context(), isb.Request{Owner: owner("p")}); err != nil {
		t.Fatal(err)
	}
	if err := dial(t, s.DSN()).Client.Del(t.Context(), "levada:{levada_ns_p_STATE}:place").Err(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := service.Open(t.Context(), isb.Request{Owner: owner("p")})
		if err == nil || !strings.Contains(err.Error(), "levada:{levada_ns_p_STATE}:place is missing") || service.Final("", err) == nil {
			t.Errorf("a place that is lost: %v", err)
		}
	}
	if _, err := service.Open(t.Context(), isb.Request{Owner: owner("q")}); err != nil {
		t.Errorf("another owner: %v", err)
	}
}

// Writes that meet a replica or a server that is gone are tried again: a failover or a restart ends both.
func TestServerThatIsNotReadyIsWaitedFor(t *testing.T) {
	s := testredis.Server(t)
	service := connect(t, s.DSN())
	defer service.Close()
	admin := dial(t, s.DSN()).Client
	store, err := service.Open(t.Context(), isb.Request{Owner: owner("p")})
	if err != nil {
		t.Fatal(err)
	}
	mayPass := func(what string) {
		t.Helper()
		if err := store.State().Put(t.Context(), "x", nil); err == nil || service.Final(what, err) != nil {
			t.Errorf("%s: %v, which is not waited for", what, err)
		}
	}
	if err := admin.Do(t.Context(), "replicaof", "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	mayPass("a replica")
	if err := admin.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	mayPass("a server that is gone")
	if service.Usable(t.Context()) == nil {
		t.Error("a server that is gone is usable")
	}
	s.Start()
	if _, err := isb.Retry(t.Context(), service, slog.New(slog.DiscardHandler), "the server", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, store.State().Put(ctx, "x", nil)
	}); err != nil {
		t.Error(err)
	}
	if err := service.Usable(t.Context()); err != nil {
		t.Error(err)
	}
}

// A server at its memory limit still takes leases, positions and dead letters: a message that waits for its letter can be the one that keeps the buffer full.
func TestFullServerTakesWhatMakesRoom(t *testing.T) {
	s := testredis.Server(t, testredis.Settings("maxmemory 8mb\nmaxmemory-policy noeviction"))
	service := connect(t, s.DSN())
	defer service.Close()
	store, err := service.Open(t.Context(), isb.Request{Owner: owner("p")})
	if err != nil {
		t.Fatal(err)
	}
	letters, err := store.DeadLetters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	admin := dial(t, s.DSN()).Client
	for i := 0; ; i++ {
		if err := admin.Set(t.Context(), fmt.Sprint("fill", i), bytes.Repeat([]byte("x"), 64<<10), 0).Err(); err != nil {
			if !strings.HasPrefix(err.Error(), "OOM") {
				t.Fatal(err)
			}
			break
		}
	}
	if err := store.State().Put(t.Context(), "source.in.0", []byte("7")); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := &deadletter.Failure{Reason: deadletter.Error, Error: "no"}
	if err := letters.Put(ctx, "cat", &flow.Message{ID: "in/1", Pos: 1, Value: bytes.Repeat([]byte("x"), 1<<20)}, f); err != nil {
		t.Error(err)
	}
	refused, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if err := letters.Put(refused, "cat", &flow.Message{ID: "in/2", Pos: 2, Value: bytes.Repeat([]byte("x"), 17<<20)}, f); err == nil {
		t.Error("letters pass the memory limit without a bound")
	}
}
