package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
)

// streamSink reads the example's stream while levada is killed: the reader goes on where it was.
func streamSink(t *testing.T, e *example) {
	address := e.freePort(t, "50051")
	conns := stream.NewConnections(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer conns.Close()
	reader, err := stream.NewReader(stream.ReaderConfig{Dial: conns.Dial, Stream: "loud", Logger: slog.New(slog.DiscardHandler), Retry: stream.Backoff{Min: 10 * time.Millisecond, Max: 100 * time.Millisecond}}, stream.Checkpoint{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var got []string
	take := func(n int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for len(got) < n {
			d, err := reader.Next(ctx)
			if err != nil {
				t.Fatalf("after %q: %v", got, err)
			}
			for _, record := range d.Records {
				_, value, _ := strings.Cut(string(record.Value), `"value":`)
				got = append(got, value)
			}
		}
	}
	r := e.start(t)
	take(4)
	r.kill(t)
	e.appendTo(t, "data/words.txt", "and one more\n")
	r = e.start(t)
	take(5)
	r.stop(t)
	same(t, "stream loud", []string{`"A LEVADA CARRIES WATER"}`, `"AROUND THE MOUNTAIN"}`, `"AND HAS NOT STOPPED"}`, `"FOR CENTURIES"}`, `"AND ONE MORE"}`}, got)
}

// streamSource serves the example a stream while levada, and the producer, are killed.
func streamSource(t *testing.T, e *example) {
	address := e.freePort(t, "50051")
	var records []stream.Record
	var want []string
	for i := range 2000 {
		record := stream.Record{Key: fmt.Appendf(nil, "%06d", i), Value: fmt.Appendf(nil, `{"value":"record %d"}`, i)}
		if i == 1234 {
			record.Bad = "the row is damaged"
		} else {
			want = append(want, fmt.Sprintf("record %d", i))
		}
		records = append(records, record)
	}
	source := stream.Slice(records...)
	written := func() int { return e.lineCount("stream-source.out") }
	serve(t, address, source, 500)
	r := e.start(t)
	r.until(t, func() bool { return written() > 100 })
	r.kill(t)
	r = e.start(t)
	r.exits(t, 3) // the stream ends, and with it the pipeline; one of its records is damaged
	e.holds(t, "stream-source.out", want...)
	letters := e.levada(t, "deadletters", "list", "--data", ".levada/stream-source", "-o", "json")
	if strings.Count(letters, "\n") != 1 || !strings.Contains(withoutIncarnation(letters), `"in/loud/1235"`) || !strings.Contains(letters, "the row is damaged") {
		t.Errorf("dead letters: %s", letters)
	}
	r = e.start(t) // and it is remembered
	r.wait(t)
	e.holds(t, "stream-source.out", want...)
}

// serve serves a stream, and is cut off again and again, every so many records.
func serve(t *testing.T, address string, source stream.Source, cut int) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := valid(stream.NewServer(stream.ServerConfig{BatchBytes: 2000, Logger: slog.New(slog.DiscardHandler)}))
	server.Handle("loud", breaking{source, cut})
	g := grpc.NewServer()
	server.Register(g)
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(listener) })
	t.Cleanup(func() { g.Stop(); serving.Wait() })
}

// breaking is a source that breaks after some records, each time.
type breaking struct {
	stream.Source
	after int
}

func (b breaking) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) {
	c, err := b.Source.Open(ctx, q)
	return &breakingCursor{Cursor: c, left: b.after}, err
}

type breakingCursor struct {
	stream.Cursor
	left int
}

func (c *breakingCursor) Next(ctx context.Context) ([]byte, error) {
	if c.left--; c.left < 0 {
		return nil, errors.New("out of breath")
	}
	return c.Cursor.Next(ctx)
}

func (e *example) lineCount(name string) int {
	b, _ := os.ReadFile(filepath.Join(e.dir, name))
	return strings.Count(string(b), "\n")
}

// kill sends SIGKILL, and waits for the end.
func (r *running) kill(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	r.over = true
}

const producingManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: producing}
spec:
  vertices:
    - name: in
      limits: {rateLimit: {max: 4000}} # so that it lasts as long as the killing
      source: {file: {path: in.txt, follow: true}}
    - name: cat
      udf: {builtin: {name: cat}}
    - name: out
      sink:
        stream:
          listen: "ADDRESS"
          name: lines
          tls: {certSecret: {name: tls, key: cert}, keySecret: {name: tls, key: key}, clientCASecret: {name: tls, key: cert}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

const receivingManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: receiving}
spec:
  vertices:
    - name: in
      source:
        stream:
          target: ADDRESS
          stream: lines
          tls: {caCertSecret: {name: tls, key: cert}, certSecret: {name: tls, key: cert}, keySecret: {name: tls, key: key}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: out}
`

// TestStreamLedger sends numbered lines from one pipeline to another over a stream, and kills either again and again: each line comes out once.
// They know each other by certificates.
func TestStreamLedger(t *testing.T) {
	const lines, kills = 30_000, 10
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	address := testserver.FreeAddress(t)
	root := t.TempDir()
	var in strings.Builder
	for i := range lines {
		fmt.Fprintf(&in, "line %d\n", i)
	}
	dir := filepath.Join(root, "ledger")
	if err := os.MkdirAll(filepath.Join(dir, "secrets", "tls"), 0o755); err != nil {
		t.Fatal(err)
	}
	cert, key := certificate(t)
	for name, text := range map[string]string{"producing.yaml": producingManifest, "receiving.yaml": receivingManifest, "in.txt": in.String(), "secrets/tls/cert": cert, "secrets/tls/key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "ADDRESS", address)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(bin, filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	producing, receiving := &example{dir, "producing.yaml"}, &example{dir, "receiving.yaml"}
	written := func() int { return receiving.lineCount("out.txt") }
	start := func(e *example) *running { return e.start(t, "--secret-dir", "secrets") }
	p, r := start(producing), start(receiving)
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for kill := range kills {
		enough := (kill + 1) * lines / (kills + 2)
		r.until(t, func() bool { return written() >= enough })
		time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond) // any moment will do
		which := random.IntN(3)
		if which != 0 {
			p.kill(t)
			p = start(producing)
		}
		if which != 1 {
			r.kill(t)
			r = start(receiving)
		}
	}
	r.until(t, func() bool { return written() >= lines })
	p.stop(t)
	r.stop(t)
	seen := make([]int, lines)
	for _, line := range receiving.out(t) {
		var i int
		if n, err := fmt.Sscanf(line, "line %d", &i); n != 1 || err != nil || i < 0 || i >= lines {
			t.Fatalf("a line that was never written: %q", line)
		}
		seen[i]++
	}
	if lost, once := slices.Index(seen, 0), slices.Max(seen); lost >= 0 || once != 1 {
		t.Errorf("line %d is lost (-1: none), and one is there %d times", lost, once)
	}
}

// certificate makes one for 127.0.0.1 that is its own authority, for server and client.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	signed, err := x509.CreateCertificate(crand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return encode("CERTIFICATE", signed), encode("PRIVATE KEY", secret)
}

func (e *example) out(t *testing.T) []string {
	t.Helper()
	return lines(e.read(t, "out.txt"))
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}
