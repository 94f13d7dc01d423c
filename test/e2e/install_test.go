package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const modulePath = "github.com/levada-io/levada"

// stranger is somebody who has the modules from a proxy, and not this repository.
type stranger struct {
	version   string
	goCommand string // the one that this build uses, whatever PATH and GOTOOLCHAIN say
	env       []string
}

var packed struct {
	sync.Once
	stranger
	err error
}

// newStranger packs all modules as they are in the working tree, once for the test binary. Other modules come from the module cache, or from wherever this build has them from.
func newStranger(t *testing.T) stranger {
	t.Helper()
	packed.Do(func() {
		// Another version each time: the module cache must not answer with the files of an earlier run.
		packed.version = "v0.9." + strconv.FormatInt(time.Now().UnixNano(), 10)
		var proxy string
		if proxy, packed.err = os.MkdirTemp("", "levada-modules-"); packed.err != nil {
			return
		}
		leftovers = append(leftovers, proxy)
		pack := exec.Command("go", "-C", filepath.Join("..", "..", "tools", "generate"), "run", "./modules", "pack", packed.version, proxy)
		pack.Env = append(os.Environ(), "GOWORK=off")
		if out, err := pack.CombinedOutput(); err != nil {
			packed.err = fmt.Errorf("pack the modules: %w\n%s", err, out)
			return
		}
		out, err := exec.Command("go", "env", "GOROOT", "GOMODCACHE", "GOPROXY").Output()
		if err != nil {
			packed.err = err
			return
		}
		goroot, rest, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		cache, rest, _ := strings.Cut(rest, "\n")
		packed.goCommand = filepath.Join(goroot, "bin", "go")
		packed.env = append(os.Environ(), "GOWORK=", "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local", "GOSUMDB=off",
			"GOPROXY=file://"+proxy+",file://"+filepath.Join(cache, "cache", "download")+","+rest)
		// The module cache is shared with other builds: nothing of this version is left there.
		files := filepath.Join(cache, filepath.FromSlash(modulePath))
		leftovers = append(leftovers, files+"*@"+packed.version, files+"/*@"+packed.version, files+"/*/*@"+packed.version, files+"/*/*/*@"+packed.version)
		download := filepath.Join(cache, "cache", "download", filepath.FromSlash(modulePath))
		for _, depth := range []string{"", "/*", "/*/*", "/*/*/*"} {
			leftovers = append(leftovers, download+depth+"/@v/"+packed.version+".*")
		}
	})
	if packed.err != nil {
		t.Fatal(packed.err)
	}
	return packed.stranger
}

// leftovers are patterns of what is removed when the tests of this package have ended.
var leftovers []string

func removeLeftovers() {
	for _, pattern := range leftovers {
		found, _ := filepath.Glob(pattern)
		for _, file := range found {
			_ = os.RemoveAll(file)
		}
	}
}

func (s stranger) run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(s.env, env...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, complaints.String())
	}
	return string(out)
}

// TestGoInstallWorksFromAModuleProxy installs the commands as a user would, with `go install MODULE/cmd/levada@VERSION`: that refuses modules whose go.mod has
// exclude or replace directives, and a go.mod that lacks a requirement which go.work hides.
func TestGoInstallWorksFromAModuleProxy(t *testing.T) {
	s, bin := newStranger(t), t.TempDir()
	s.run(t, t.TempDir(), []string{"GOBIN=" + bin}, s.goCommand, "install", modulePath+"/cmd/levada@"+s.version)
	if out := s.run(t, bin, nil, filepath.Join(bin, "levada"), "version"); !strings.Contains(out, s.version) {
		t.Fatalf("levada version says nothing of %s:\n%s", s.version, out)
	}
}

// heavy are modules that only those may have in their graphs who use the driver for them.
var heavy = []string{
	"github.com/nats-io/nats-server/v2", "github.com/nats-io/nats.go", "k8s.io/client-go", "github.com/jackc/pgx/v5", "modernc.org/sqlite", "github.com/rabbitmq/amqp091-go",
	"github.com/prometheus/client_golang", "github.com/pressly/goose/v3", modulePath,
}

// TestUsersOfTheLibrariesGetLightModules adds each library to a program of its own, as a user does. With one module for all they got a NATS server and client-go into
// their module graph and go.sum; a test file of a library that imports the server does the same, since go mod tidy looks at the tests of the packages that are used.
func TestUsersOfTheLibrariesGetLightModules(t *testing.T) {
	s := newStranger(t)
	for _, c := range []struct {
		packages string
		may      []string // of heavy, the ones that the user has asked for
	}{
		{"sdk", nil},
		{"grpclife", nil},
		{"stream stream/memstore stream/streamtest stream/driver", nil},
		{"stream/natsnotify", []string{"github.com/nats-io/nats.go"}},
		{"stream/rabbitnotify", []string{"github.com/rabbitmq/amqp091-go"}},
		{"stream/pgnotify", []string{"github.com/jackc/pgx/v5"}},
		{"stream/pgsource", []string{"github.com/jackc/pgx/v5"}},
		// goose names the databases that it knows in its go.mod.
		{"stream/pgstore", []string{"github.com/jackc/pgx/v5", "github.com/pressly/goose/v3", "modernc.org/sqlite"}},
		{"stream/sqlitestore", []string{"modernc.org/sqlite", "github.com/pressly/goose/v3", "github.com/jackc/pgx/v5"}},
		{"stream/podwatch", []string{"k8s.io/client-go", "github.com/prometheus/client_golang"}}, // client-go's own
		{"stream/streammetrics", []string{"github.com/prometheus/client_golang"}},
	} {
		t.Run(c.packages, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			program := "package main\n\nimport (\n"
			for name := range strings.FieldsSeq(c.packages) {
				program += fmt.Sprintf("\t_ %q\n", modulePath+"/"+name)
			}
			if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program+")\n\nfunc main() {}\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			s.run(t, dir, nil, s.goCommand, "mod", "init", "example.com/user")
			first, _, _ := strings.Cut(c.packages, " ")
			s.run(t, dir, nil, s.goCommand, "get", modulePath+"/"+first+"@"+s.version)
			s.run(t, dir, nil, s.goCommand, "mod", "tidy")
			may := map[string]bool{}
			for _, name := range c.may {
				may[name] = true
			}
			sums, err := os.ReadFile(filepath.Join(dir, "go.sum"))
			if err != nil {
				t.Fatal(err)
			}
			for what, list := range map[string]string{
				"go mod graph": s.run(t, dir, nil, s.goCommand, "mod", "graph"), "go.sum": string(sums),
				"go list -deps": s.run(t, dir, nil, s.goCommand, "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "."),
			} {
				names := strings.FieldsFunc(list, func(r rune) bool { return r == ' ' || r == '\n' || r == '@' })
				for _, name := range heavy {
					for _, found := range names {
						if found == name && !may[name] {
							t.Errorf("a user of %s has %s in %s", c.packages, name, what)
							break
						}
					}
				}
			}
			if !strings.Contains(c.packages, "/") || strings.Contains(c.packages, " ") {
				s.run(t, dir, nil, s.goCommand, "build", "-o", filepath.Join(dir, "program"), ".")
			}
		})
	}
}
