package discovery

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseFile(t *testing.T) {
	two := []string{"10.0.0.1:80", "[::1]:80"}
	for name, text := range map[string]string{
		"lines":            "10.0.0.1:80\n[::1]:80\n",
		"lines, the other": "# the backends\r\n\r\n10.0.0.1:80 # the first\r\n  [::1]:80",
		"byte order mark":  "\ufeff10.0.0.1:80\n[::1]:80",
		"JSON":             `["10.0.0.1:80","[::1]:80"]`,
		"JSON on lines":    "[\n\t\"10.0.0.1:80\",\n\t\"[::1]:80\"\n]\n",
		"YAML":             "# backends\n- 10.0.0.1:80\n- '[::1]:80'\n",
		"YAML in a line":   `[10.0.0.1:80, "[::1]:80"]`,
		"YAML, anchors":    "- &a 10.0.0.1:80\n- \"[::1]:80\" # the other\n",
	} {
		got, err := parseFile("f", []byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(two, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for _, text := range []string{"[]", "[ ]\n", "# none\n[]"} {
		if got, err := parseFile("f", []byte(text)); err != nil || len(got) != 0 {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got, err := parseFile("f", []byte("[::1]:80\n10.0.0.1:80")); err != nil || len(got) != 2 {
		t.Errorf("a file that begins with an IPv6 address: %v, %v", got, err)
	}
	for _, c := range []struct{ text, want string }{
		{"", "f: the file has no endpoints; write [] if there are none"},
		{"# nothing\n\n", "f: the file has no endpoints"},
		{"10.0.0.1:80\n\n10.0.0.2\n", `f: line 3: "10.0.0.2" has no port`},
		{"10.0.0.1:80 10.0.0.2:80", "f: line 1:"},
		{"10.0.0.1:80, 10.0.0.2:80", `f: line 1: "10.0.0.1:80, 10.0.0.2:80" is a list, and there can be only one host:port here`},
		{"[::1]:80\n[::2]:800000", `f: line 2: the port "800000"`},
		{"[\n\"a:1\",\n\"b\"\n]", `f: line 3: "b" has no port`},
		{"[\"a:1\",\n\"b:2\"", "f: line 2:"},
		{"- a:1\n- b\n", `f: line 2: "b" has no port`},
		{"- a:1\n- b: 2\n", "f: line 2: expected a host:port"},
		{"- a:1\n  - b:2", "f: line 1:"},
		{`{"a:1": true}`, "f: line 1:"},
		{"- a:1\n---\n- b:2\n- c:3", "f: line 2: expected one list"},
	} {
		if _, err := parseFile("f", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: the error is %v, want one with %q", c.text, err, c.want)
		}
	}
}

// The examples in the documentation are what they say.
func TestDocumentedFiles(t *testing.T) {
	text, err := os.ReadFile("../../../docs/proxy-config.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```(?:text|json)\n(# The endpoints.*?|\\[.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d examples of files", len(blocks))
	}
	for _, b := range blocks {
		got, err := parseFile("f", []byte(b[1]))
		if diff := cmp.Diff([]string{"10.0.0.1:50051", "[2001:db8::1]:50051", "orders.example.com:50051"}, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", b[1], err, diff)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	for _, s := range []string{"a:1\n", "[]", "- a:1", `["[::1]:80"]`, "[", "-", "- ", "[::1]:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		endpoints, err := parseFile("f", []byte(s))
		if err != nil && !strings.HasPrefix(err.Error(), "f: ") {
			t.Errorf("%q: the error does not name the file: %v", s, err)
		}
		for _, endpoint := range endpoints {
			if _, err := ParseEndpoint(endpoint); err != nil {
				t.Errorf("%q: %v", s, err)
			}
		}
	})
}

// write writes in place, replace atomically.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints")
	source, lists := follow(t, "file://"+path, Options{Poll: 10 * time.Millisecond})
	failing := func(what string) func() bool {
		return func() bool { s := source.Status(); return s.Failing && strings.Contains(s.LastError.Error(), what) }
	}
	eventually(t, "the missing file is an error", failing("no such file"))
	if source.Status().Known {
		t.Error("a list is known without a file")
	}
	write(t, path, "b:2\na:1\n")
	next(t, lists, "a:1", "b:2")
	if s := source.Status(); s.Failing || s.LastError == nil || s.Endpoints != 2 {
		t.Errorf("%+v", s)
	}

	write(t, path, "a:1\nb:\n")
	eventually(t, "a broken line is an error that names it", failing(path+`: line 2: the port ""`))
	write(t, path, "")
	eventually(t, "an empty file is an error", failing("has no endpoints"))
	write(t, path, "a:1\nc:3\n")
	next(t, lists, "a:1", "c:3")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a file that is gone is an error", failing("no such file"))
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a folder is an error", failing("not a regular file"))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	replace(t, path, "c:3\na:1\n")
	eventually(t, "the same list as before, but in order again", func() bool { return !source.Status().Failing })
	replace(t, path, "[]")
	next(t, lists)
	replace(t, path, `["d:4"]`)
	next(t, lists, "d:4")
	if n := len(lists); n != 0 {
		t.Errorf("%d lists more than there were changes", n)
	}
}

// A ConfigMap's file is a link to a link to a folder, and the folder's link is what is replaced.
func TestFileOfAConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "endpoints"), text)
		if err := os.Symlink(name, filepath.Join(dir, "new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", "a:1")
	if err := os.Symlink("..data/endpoints", filepath.Join(dir, "endpoints")); err != nil {
		t.Fatal(err)
	}
	_, lists := follow(t, "file://"+filepath.Join(dir, "endpoints"), Options{Poll: 10 * time.Millisecond})
	next(t, lists, "a:1")
	version("..2", "b:2")
	next(t, lists, "b:2")
}

// Somebody writes the file in place, piece by piece; no half of it may be taken for the whole. The pieces end within a port.
func TestFileThatIsBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "endpoints")
		write(t, path, "a:8080\n")
		_, lists := follow(t, "file://"+path, Options{Poll: 200 * time.Millisecond})
		next(t, lists, "a:8080")
		time.Sleep(155 * time.Millisecond) // it is read after 200, 240, 280 ms
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		for _, piece := range []string{"a:8080\nb:80", "80\nc:80", "80\nd:80", "80\n"} {
			if _, err := file.WriteString(piece); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Millisecond)
		}
		next(t, lists, "a:8080", "b:8080", "c:8080", "d:8080")
	})
}

// The set changes every 100 ms, now and then to something broken. What was removed is gone within a second, and the last list stays.
func TestFileChangesAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "endpoints")
		var since [101]time.Time // by the number that is the list's port
		put := func(i int) {
			since[i] = time.Now()
			if text := fmt.Sprintf("a:%d\nb:1\n", i); i%4 < 2 {
				replace(t, path, text)
			} else {
				write(t, path, text)
			}
			if i%10 == 5 {
				replace(t, path, "broken")
			}
		}
		put(1)
		_, lists := follow(t, "file://"+path, Options{}) // with the defaults
		seen := 0
		read := func() {
			for len(lists) > 0 {
				list := <-lists
				if _, err := fmt.Sscanf(list[0], "a:%d", &seen); err != nil || !slices.Contains(list, "b:1") {
					t.Fatalf("%v is no list that was written", list)
				}
			}
		}
		for i := 2; i < len(since); i++ {
			time.Sleep(100 * time.Millisecond)
			put(i)
			read()
			if seen < i && time.Since(since[seen+1]) > time.Second {
				t.Errorf("list %d is still there, removed %v ago", seen, time.Since(since[seen+1]))
			}
		}
		time.Sleep(time.Second)
		if read(); seen != len(since)-1 {
			t.Errorf("the last list that was seen is %d, a second after %d was written", seen, len(since)-1)
		}
	})
}
