//go:build linux

package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// site is a directory with a manifest and its files.
type site struct {
	dir, data string
	ledger
}

const siteLines = 500

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{dir: dir, data: filepath.Join(dir, "data"), ledger: newLedger(t, dir, siteLines, plain)}
	s.manifest(t, nil)
	return s
}

const siteManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: site}
spec:
  limits: {readBatchSize: 10}
  vertices:
    - name: in
      source: {file: {path: in.txt}}
    - name: cat
      udf: {container: {command: [CAT]}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

// manifest writes the manifest, with replacements.
func (s *site) manifest(t *testing.T, replace map[string]string) {
	t.Helper()
	text := siteManifest
	for old, with := range replace {
		if !strings.Contains(text, old) {
			t.Fatalf("the manifest has no %q", old)
		}
		text = strings.ReplaceAll(text, old, with)
	}
	text = strings.ReplaceAll(text, "CAT", program(t, "cat"))
	if err := os.WriteFile(filepath.Join(s.dir, "pipeline.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s *site) command(ctx context.Context, t *testing.T, flags ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, program(t, "levada"), append([]string{"run", filepath.Join(s.dir, "pipeline.yaml"), "--data", s.data, "--quiet", "--log-format", "text"}, flags...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs levada to its end.
func (s *site) run(t *testing.T, flags ...string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := s.command(ctx, t, flags...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Fatalf("levada %v: %v\n%s", flags, err, last(out, 2000))
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return string(out), code
}

// refuses wants levada to end with a code and exactly one line of its own that says all of want.
func (s *site) refuses(t *testing.T, code int, want []string, flags ...string) {
	t.Helper()
	out, got := s.run(t, flags...)
	if got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	var said []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "levada: ") || strings.Contains(line, ": error LV") {
			said = append(said, line)
		}
	}
	if len(said) != 1 {
		t.Errorf("it said %d lines: %q", len(said), said)
	}
	for _, w := range want {
		if !strings.Contains(strings.Join(said, ""), w) {
			t.Errorf("%q does not say %q", said, w)
		}
	}
	if t.Failed() {
		t.Log(string(last([]byte(out), 3000)))
	}
}

// delivers wants levada to deliver everything.
func (s *site) delivers(t *testing.T, flags ...string) {
	t.Helper()
	if out, code := s.run(t, flags...); code != 0 {
		t.Fatalf("exit code %d\n%s", code, last([]byte(out), 3000))
	}
	s.check(t, plain, nothing)
}

// backlog leaves blocks in the buffer of the sink, which is slow, and kills everything.
func (s *site) backlog(t *testing.T) {
	t.Helper()
	s.manifest(t, map[string]string{"name: out\n": "name: out\n      limits: {rateLimit: {max: 20}}\n"})
	cmd := s.command(t.Context(), t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	var full time.Time
	for ; full.IsZero() || time.Since(full) < 2500*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		v := s.vertices()
		if full.IsZero() && len(v) == 3 && v[0].Pending == 0 && v[1].Pending == 0 && v[2].Pending > siteLines/2 {
			full = time.Now() // and a little longer, so that what is known of the store is saved
		}
		if time.Now().After(deadline) {
			t.Fatalf("no backlog: %+v", v)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	s.manifest(t, nil)
}

type vertexStatus struct {
	Name    string
	Pending int
}

func (s *site) control() (address, token string) {
	b, err := os.ReadFile(filepath.Join(s.data, "control.json"))
	var c struct{ Address, Token string }
	if err != nil || json.Unmarshal(b, &c) != nil {
		return "", ""
	}
	return c.Address, c.Token
}

func (s *site) vertices() []vertexStatus {
	address, token := s.control()
	if address == "" {
		return nil
	}
	req, _ := http.NewRequest(http.MethodGet, "http://"+address+"/api/v1/status", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	client := http.Client{Timeout: time.Second}
	res, err := client.Do(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	var status []struct{ Vertices []vertexStatus }
	if json.NewDecoder(res.Body).Decode(&status) != nil || len(status) != 1 {
		return nil
	}
	return status[0].Vertices
}

// readyz returns what the readiness probe says.
func (s *site) readyz() (code int, body string) {
	address, _ := s.control()
	client := http.Client{Timeout: 5 * time.Second}
	res, err := client.Get("http://" + address + "/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// stream is the directory in which the broker keeps a stream.
func (s *site) stream(name string) string {
	return filepath.Join(s.data, "broker", "jetstream", "$G", "streams", name)
}

// TestRefused is what levada cannot run: it says in one line what is wrong, and once that is fixed everything arrives.
func TestRefused(t *testing.T) {
	two := strings.TrimPrefix(siteManifest, "\n")
	for name, c := range map[string]struct {
		replace map[string]string
		spoil   func(t *testing.T, s *site) (mend func())
		flags   []string
		code    int
		want    []string
	}{
		"wrong path of a function": {
			replace: map[string]string{"CAT": "./no-such-function"}, code: 1, want: []string{"function cat/udf", "no-such-function: no such file or directory"},
		},
		"a function of the wrong kind": {
			replace: map[string]string{"CAT": "LOGSINK"}, code: 1, want: []string{"function cat/udf", "it is a sinker (it serves as udsink), and a mapper is needed here"},
		},
		"a program that is no function": {
			replace: map[string]string{"CAT": "/bin/true"}, code: 1, want: []string{`function cat/udf, command "/bin/true": `, "it ended before it was ready: exit code 0"},
		},
		"a missing input": {
			spoil: func(t *testing.T, s *site) func() {
				if err := os.Rename(s.in, s.in+".away"); err != nil {
					t.Fatal(err)
				}
				return func() { _ = os.Rename(s.in+".away", s.in) }
			},
			code: 1, want: []string{"pipeline site: vertex in: path: ", "in.txt: no such file or directory"},
		},
		"a missing output directory": {
			replace: map[string]string{"path: out.txt": "path: nowhere/out.txt"}, code: 1, want: []string{"pipeline site: vertex out: path: open ", "nowhere/out.txt: no such file or directory"},
		},
		"a port in use": {
			spoil: func(t *testing.T, s *site) func() {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				t.Setenv("LEVADA_LISTEN", l.Addr().String())
				return func() { _ = l.Close() }
			},
			code: 1, want: []string{"listen for metrics and the API (--listen)", "address already in use"},
		},
		"an unknown vertex": {
			flags: []string{"--function", "cta=./cat"}, code: 2, want: []string{`--function "cta=./cat": no vertex is called cta; the vertices are in, cat, out`},
		},
		"a reduce": {
			replace: map[string]string{"udf: {": "udf: {groupBy: {window: {fixed: {length: 10s}}, storage: {emptyDir: {}}}, "}, code: 1, want: []string{"pipeline.yaml:", "error LV2301: groupBy: a reduce cannot run in this version"},
		},
		"two pipelines of the same name": {
			replace: map[string]string{two: two + "---\n" + two}, code: 1, want: []string{`error LV1103: Pipeline "site" is there twice`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			for old, with := range c.replace {
				if with == "LOGSINK" {
					c.replace[old] = logSink(t)
				}
			}
			s.manifest(t, c.replace)
			mend := func() {}
			if c.spoil != nil {
				mend = c.spoil(t, s)
			}
			begun := time.Now()
			s.refuses(t, c.code, c.want, c.flags...)
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("it took %v to say so", took)
			}
			mend()
			s.manifest(t, nil)
			s.delivers(t)
		})
	}
}

func logSink(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log-sink")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/levada-io/levada/examples/functions/log-sink").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// TestNeverReady starts a function that never gets ready: levada is alive but not ready, moves nothing, and can be stopped.
func TestNeverReady(t *testing.T) {
	s := newSite(t)
	s.manifest(t, map[string]string{"[CAT]": `[/bin/sleep, "1000"]`})
	cmd := s.command(t.Context(), t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var code int
	var body string
	for deadline := time.Now().Add(10 * time.Second); code == 0 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		code, body = s.readyz()
	}
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "starting") {
		t.Errorf("readyz says %d %q", code, body)
	}
	begun := time.Now()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 143 || time.Since(begun) > 10*time.Second {
		t.Errorf("after SIGTERM it ended with %v in %v", err, time.Since(begun))
	}
	s.manifest(t, nil)
	s.delivers(t)
}

// TestDataDirectoryInUse starts a second levada on the data directory of a first, which must not notice.
func TestDataDirectoryInUse(t *testing.T) {
	s := newSite(t)
	s.manifest(t, map[string]string{"name: out\n": "name: out\n      limits: {rateLimit: {max: 100}}\n"})
	first := s.command(t.Context(), t)
	var out bytes.Buffer
	first.Stdout, first.Stderr = &out, &out
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); s.vertices() == nil && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	s.refuses(t, 1, []string{"data directory is in use: " + s.data, fmt.Sprintf("is used by process %d", first.Process.Pid)})
	if err := first.Wait(); err != nil {
		t.Fatalf("the first ended with %v:\n%s", err, out.Bytes())
	}
	s.check(t, plain, nothing)
}

// TestCorruptStore damages the store of a stopped pipeline. Damage is always told, naming the buffer and the sequence, however often it is started; with --skip-corrupt
// all that is not damaged arrives.
func TestCorruptStore(t *testing.T) {
	const stream, buffer = "levada_default_site_out_0", "default-site-out-0"
	missing := regexp.MustCompile(`buffer ` + buffer + `: stored blocks are missing: (\d+) to (\d+)(?:, since \S+: stored blocks are missing: \d+ to \d+)?; the stream and every replica of it were asked\. Nothing was removed\. Restore`)
	for name, c := range map[string]struct {
		damage func(t *testing.T, block string)
		keep   int // lines that must arrive with --skip-corrupt
	}{
		"a flipped bit": {func(t *testing.T, block string) {
			b, err := os.ReadFile(block)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			if err := os.WriteFile(block, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}, siteLines - 10},
		"a lost end": {func(t *testing.T, block string) {
			info, err := os.Stat(block)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(block, info.Size()/2); err != nil {
				t.Fatal(err)
			}
		}, siteLines / 3},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.backlog(t)
			blocks, err := filepath.Glob(strings.ReplaceAll(s.stream(stream), "$", `\$`) + "/msgs/*.blk")
			if err != nil || len(blocks) == 0 {
				t.Fatalf("no blocks: %v", err)
			}
			c.damage(t, blocks[len(blocks)-1])
			for range 3 {
				out, code := s.run(t)
				if code != 1 || !missing.MatchString(out) {
					t.Fatalf("exit code %d: %s", code, last([]byte(out), 2000))
				}
			}
			out, code := s.run(t, "--skip-corrupt")
			if code != 0 || !strings.Contains(out, `msg="stored data is damaged and skipped" buffer=`+buffer) {
				t.Fatalf("exit code %d: %s", code, last([]byte(out), 2000))
			}
			lost, doubled := s.count(t)
			if doubled > 0 || s.lines-lost < c.keep || lost == 0 {
				t.Errorf("%d lines lost and %d doubled, at least %d should be there", lost, doubled, c.keep)
			}
			t.Logf("%d of %d lines lost with the damaged blocks", lost, s.lines)
			if out, code := s.run(t); code != 0 {
				t.Errorf("afterwards: exit code %d: %s", code, last([]byte(out), 2000))
			}
		})
	}
}

// TestMissingStream deletes the store of a stream that held messages. It is never recreated by itself; when it is brought back everything arrives.
func TestMissingStream(t *testing.T) {
	s := newSite(t)
	s.backlog(t)
	dir := s.stream("levada_default_site_out_0")
	if err := os.Rename(dir, filepath.Join(s.dir, "away")); err != nil {
		t.Fatal(err)
	}
	want := []string{"pipeline site, vertex out: stream levada_default_site_out_0: stream is missing, though it was made before", "unless it is restored from a copy of the store"}
	s.refuses(t, 1, want)
	s.refuses(t, 1, want, "--skip-corrupt")
	if err := os.Rename(filepath.Join(s.dir, "away"), dir); err != nil {
		t.Fatal(err)
	}
	s.delivers(t)
}

// TestDiskFull fills the disk of the store under a running pipeline: it tells so within half a minute, and once there is room and it is started again everything arrives.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		cannot(t, "a small disk needs root")
	}
	ownMounts(t)
	s := newSite(t)
	if err := os.Mkdir(s.data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", s.data, "tmpfs", 0, "size=16m"); err != nil {
		cannot(t, "mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(s.data, unix.MNT_DETACH) })
	long := func(i int) string { return strings.Repeat("x", 1000+i%50) }
	s.ledger = newLedger(t, s.dir, 30_000, long)
	slow := map[string]string{"limits: {readBatchSize: 10}": "limits: {readBatchSize: 500, bufferMaxLength: 100000}", "name: out\n": "name: out\n      limits: {rateLimit: {max: 100}}\n"}
	s.manifest(t, slow)
	cmd := s.command(t.Context(), t)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var full time.Time
	var told time.Duration
	for deadline := time.Now().Add(60 * time.Second); told == 0 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		var fs unix.Statfs_t
		if err := unix.Statfs(s.data, &fs); err == nil && full.IsZero() && fs.Bavail*uint64(fs.Bsize) < 5<<20 { // of a small disk a quarter stays free
			full = time.Now()
		}
		if code, body := s.readyz(); !full.IsZero() && code == http.StatusServiceUnavailable {
			told = time.Since(full)
			t.Logf("readyz says after %v: %s", told.Round(time.Millisecond), body)
		}
	}
	if full.IsZero() || told == 0 || told > 30*time.Second {
		t.Errorf("full: %v, told after %v", !full.IsZero(), told)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if !strings.Contains(out.String(), "disk nearly full, writes wait for room") {
		t.Errorf("the log does not say it: %s", last(out.Bytes(), 3000))
	}
	if err := unix.Mount("", s.data, "", unix.MS_REMOUNT, "size=256m"); err != nil {
		t.Fatal(err)
	}
	delete(slow, "name: out\n")
	s.manifest(t, slow)
	if text, code := s.run(t); code != 0 {
		t.Fatalf("with room again: exit code %d\n%s", code, last([]byte(text), 3000))
	}
	s.check(t, long, nothing)
}

// TestUnfinishedStream begins with a stream whose making was cut short, by a crash between its description and the checksum of that. The broker would store
// messages in it, and not find it at its next start.
func TestUnfinishedStream(t *testing.T) {
	donor := newSite(t)
	donor.delivers(t)
	for _, name := range []string{"levada_default_site_out_0", "KV_levada_default_site_STATE"} {
		s := newSite(t)
		description, err := os.ReadFile(filepath.Join(donor.stream(name), "meta.inf"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(s.stream(name), "msgs"), 0o755), os.WriteFile(filepath.Join(s.stream(name), "meta.inf"), description, 0o644)); err != nil {
			t.Fatal(err)
		}
		s.backlog(t)
		s.delivers(t)
	}
}
