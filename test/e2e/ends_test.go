package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// endManifest reads in.txt, has a function in the middle, and writes out.txt.
const endManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: ends}
spec:
  vertices:
    - name: in
      source: {file: {path: in.txt}}
    - name: middle
      udf: {container: {command: [COMMAND]}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: middle}
    - {from: middle, to: out}
`

const poison = "../bin/functions/poison"

// ends makes a directory with a manifest and its input.
func ends(t *testing.T, command, input string) *example {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	e := &example{filepath.Join(root, "ends"), "ends.yaml"}
	if err := os.Mkdir(e.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{e.name: strings.Replace(endManifest, "COMMAND", command, 1), "in.txt": input} {
		if err := os.WriteFile(filepath.Join(e.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(bin, filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	return e
}

func (r *running) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// says fails unless the last line of standard error has each of the texts.
func (r *running) says(t *testing.T, texts ...string) {
	t.Helper()
	all := lines(r.stderr.String())
	if len(all) == 0 {
		t.Fatal("nothing was said")
	}
	for _, text := range texts {
		if last := all[len(all)-1]; !strings.Contains(last, text) {
			t.Errorf("the last line is\n%s\nwant %q in it; all of it:\n%s", last, text, r.stderr.String())
		}
	}
}

// TestExitCodeAndLastLineSayWhatIsWhere goes through the ways in which a run ends.
func TestExitCodeAndLastLineSayWhatIsWhere(t *testing.T) {
	t.Run("everything is delivered", func(t *testing.T) {
		e := ends(t, poison, "a\nb\n")
		r := e.start(t)
		r.exits(t, 0)
		r.says(t, "finished", "read 2, delivered 2", "nothing is left")
	})
	t.Run("dead letters", func(t *testing.T) {
		e := ends(t, poison, "a\npanic\n")
		r := e.start(t)
		r.exits(t, 3)
		r.says(t, "read 2, delivered 1", "dead-lettered 1", "levada deadletters list --data .levada/ends")
		r = e.start(t) // of an earlier run: nothing new
		r.exits(t, 0)
		e.appendTo(t, "in.txt", "error\n")
		r = e.start(t, "--allow-dead-letters")
		r.exits(t, 0)
		r.says(t, "dead-lettered 1")
	})
	t.Run("the command line is wrong", func(t *testing.T) {
		e := ends(t, poison, "")
		for _, flags := range [][]string{{"--no-such-flag"}, {"--output", "yaml"}, {"--log-format", "json", "-o", "text"}, {"--interval", "-1s"}, {"--drain-timeout", "-1s"}} {
			e.start(t, flags...).exits(t, 2)
		}
	})
	t.Run("a manifest is wrong", func(t *testing.T) {
		e := ends(t, poison, "")
		if err := os.WriteFile(filepath.Join(e.dir, e.name), []byte("kind: Pipeline\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		e.start(t).exits(t, 1)
	})
	for name, s := range map[string]syscall.Signal{"Ctrl-C": syscall.SIGINT, "SIGTERM": syscall.SIGTERM} {
		t.Run(name+" with messages kept", func(t *testing.T) {
			e := ends(t, poison, "hang\n")
			r := e.start(t, "--drain-timeout", "2s", "--interval", "100ms", "--processing-timeout", "10m")
			r.until(t, func() bool { return strings.Contains(r.stderr.String(), "middle read 1 ") })
			r.signal(t, s)
			r.exits(t, 128+int(s))
			r.says(t, "stopped", "delivered 0", "kept: 1 in buffers", ".levada/ends", "the same command goes on")
		})
		t.Run(name+" during the start", func(t *testing.T) {
			e := ends(t, "/bin/sleep, '1000'", "a\n")
			r := e.start(t)
			r.until(t, func() bool { return strings.Contains(r.stderr.String(), "waiting for function") })
			r.signal(t, s)
			r.exits(t, 128+int(s))
			r.says(t, "stopped before the start was complete", "nothing was read")
			if strings.Contains(r.stderr.String(), "context canceled") {
				t.Errorf("an error of Go is shown:\n%s", r.stderr.String())
			}
		})
	}
	t.Run("SIGTERM when everything is delivered", func(t *testing.T) {
		e := ends(t, poison, "")
		text := strings.Replace(endManifest, "{path: in.txt}", "{path: in.txt, follow: true}", 1)
		if err := os.WriteFile(filepath.Join(e.dir, e.name), []byte(strings.Replace(text, "COMMAND", poison, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		e.appendTo(t, "in.txt", "a\nb\n")
		r := e.start(t)
		r.until(t, func() bool { b, _ := os.ReadFile(filepath.Join(e.dir, "out.txt")); return string(b) == "a\nb\n" })
		r.signal(t, syscall.SIGTERM)
		r.exits(t, 0)
		r.says(t, "delivered 2", "nothing is left in buffers or in flight")
	})
}

// TestDrainTimeoutIsTheWholeTime: a function that hangs does not extend it.
func TestDrainTimeoutIsTheWholeTime(t *testing.T) {
	e := ends(t, poison, strings.Repeat("hang\n", 50))
	r := e.start(t, "--drain-timeout", "3s", "--interval", "100ms", "--processing-timeout", "10m")
	r.until(t, func() bool { return strings.Contains(r.stderr.String(), "middle read 50 ") })
	begun := time.Now()
	r.signal(t, syscall.SIGTERM)
	r.exits(t, 143)
	if took := time.Since(begun); took > 3500*time.Millisecond {
		t.Errorf("it took %v\n%s", took, r.stderr.String())
	}
	r.says(t, "kept: 50 in buffers")
}

// TestSecondSignalEndsAtOnce and says what is not acknowledged.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	e := ends(t, poison, strings.Repeat("hang\n", 50))
	r := e.start(t, "--interval", "100ms", "--processing-timeout", "10m")
	r.until(t, func() bool { return strings.Contains(r.stderr.String(), "middle read 50 ") })
	r.signal(t, syscall.SIGINT)
	r.until(t, func() bool { return strings.Contains(r.stderr.String(), "process is stopping") })
	begun := time.Now()
	r.signal(t, syscall.SIGINT)
	r.exits(t, 130)
	if took := time.Since(begun); took > time.Second { // 0.3 s on a machine that is not busy
		t.Errorf("it took %v\n%s", took, r.stderr.String())
	}
	r.says(t, "kept: 50 in buffers")
	if !strings.Contains(r.stderr.String(), "a second signal came; what is not acknowledged comes again") {
		t.Errorf("%s", r.stderr.String())
	}
	// Nothing is lost by it.
	if err := os.WriteFile(filepath.Join(e.dir, e.name), []byte(strings.Replace(endManifest, "COMMAND", "../bin/functions/cat", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	e.run(t)
	e.holds(t, "out.txt", lines(strings.Repeat("hang\n", 50))...)
}

// TestStandardErrorIsOneFormat: with --log-format json each line is a record, however the run ends.
func TestStandardErrorIsOneFormat(t *testing.T) {
	check := func(t *testing.T, r *running, codes ...int) {
		t.Helper()
		r.exits(t, codes...)
		all := lines(r.stderr.String())
		if len(all) == 0 {
			t.Fatal("nothing was said")
		}
		for _, line := range all {
			var record map[string]any
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				t.Fatalf("%v in the line %q", err, line)
			}
			for _, field := range []string{"@timestamp", "log.level", "message", "ecs.version", "service.name"} {
				if s, ok := record[field].(string); !ok || s == "" && field != "message" {
					t.Errorf("%s is %v in the line %s", field, record[field], line)
				}
			}
		}
	}
	const json = "--log-format=json"
	t.Run("success", func(t *testing.T) { check(t, ends(t, poison, "a\n").start(t, json, "--interval", "100ms"), 0) })
	t.Run("dead letters and what functions print", func(t *testing.T) {
		check(t, ends(t, poison, "a\npanic\ncrash\n").start(t, json), 3)
	})
	t.Run("failure", func(t *testing.T) { check(t, ends(t, "/no/such/program", "a\n").start(t, json), 1) })
	t.Run("a manifest is wrong", func(t *testing.T) {
		e := ends(t, poison, "a\n")
		if err := os.WriteFile(filepath.Join(e.dir, e.name), []byte("kind: Pipeline\nspec: [\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		check(t, e.start(t, json), 1)
	})
	t.Run("the command line is wrong", func(t *testing.T) {
		e := ends(t, poison, "a\n")
		check(t, e.start(t, json, "--no-such-flag"), 2)
		check(t, e.start(t, "--no-such-flag", json), 2)
		check(t, e.startCommand(t, "run", json), 2)
		check(t, e.start(t, json, "--interval", "x"), 2)
		check(t, e.start(t, json, "--function", "nowhere=x"), 2)
	})
	t.Run("a signal", func(t *testing.T) {
		e := ends(t, poison, "hang\n")
		r := e.start(t, json, "--drain-timeout", "1s", "--interval", "100ms")
		r.until(t, func() bool { return strings.Contains(r.stderr.String(), `"vertex":"middle","read":1,`) })
		r.signal(t, syscall.SIGTERM)
		check(t, r, 143)
	})
	t.Run("progress as json", func(t *testing.T) { check(t, ends(t, poison, "a\n").start(t, "-o", "json"), 0) })
}

// TestDuplicatesAreVisible: messages that are dropped because they were seen before are counted, warned of, and not called delivered.
func TestDuplicatesAreVisible(t *testing.T) {
	e := ends(t, poison, "")
	text := strings.Replace(endManifest, "file: {path: in.txt}", "http: {ports: {https: 8443, http: 8090}}", 1)
	if err := os.WriteFile(filepath.Join(e.dir, e.name), []byte(strings.Replace(text, "COMMAND", poison, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	address := e.freePort(t, "8090")
	e.freePort(t, "8443")
	r := e.start(t, "--interval", "100ms")
	send := func(id string) {
		t.Helper()
		r.until(t, func() bool { return post("http://"+address+"/vertices/in", id, "x") == nil })
	}
	send("first")
	for range 5 {
		send("first") // a source that counts from 0 again
	}
	r.until(t, func() bool { return strings.Contains(r.stderr.String(), "duplicates 5 ") })
	r.signal(t, syscall.SIGTERM)
	r.exits(t, 0)
	r.says(t, "read 6, delivered 1", "dropped 5 duplicates")
	if got := strings.Count(r.stderr.String(), "most messages are dropped as duplicates"); got != 1 {
		t.Errorf("warned %d times\n%s", got, r.stderr.String())
	}
}

// TestDataDirectoryIsItsOwnersAlone: it holds messages and a token.
func TestDataDirectoryIsItsOwnersAlone(t *testing.T) {
	e := ends(t, poison, "a\npanic\n")
	e.start(t).exits(t, 3)
	err := filepath.WalkDir(filepath.Join(e.dir, ".levada"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if m := info.Mode().Perm(); m&0o077 != 0 {
			return fmt.Errorf("%s has mode %v", path, m)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
