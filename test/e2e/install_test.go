package e2e

import (
	"archive/zip"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const modulePath = "github.com/levada-io/levada"

// TestGoInstallWorksFromAModuleProxy installs the commands as a user would, with `go install MODULE/cmd/levada@VERSION`: that refuses modules whose go.mod has
// exclude or replace directives. The module is served from a directory; what it depends on comes from wherever this build has it from.
func TestGoInstallWorksFromAModuleProxy(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	// Another version for other files: what a module cache has of an earlier run must not be installed.
	version := "v0.9." + strconv.FormatUint(uint64(crc32.ChecksumIEEE(fmt.Appendf(nil, "%v", time.Now()))), 10)
	proxy := t.TempDir()
	writeModule(t, root, filepath.Join(proxy, filepath.FromSlash(modulePath), "@v"), version)
	output := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			t.Fatalf("%s %v: %v", name, args, err)
		}
		return strings.TrimSpace(string(out))
	}
	rest := output("go", "env", "GOPROXY")
	cache := output("go", "env", "GOMODCACHE")
	bin := t.TempDir()
	cmd := exec.Command("go", "install", modulePath+"/cmd/levada@"+version)
	cmd.Dir = t.TempDir() // not in a module
	cmd.Env = append(os.Environ(), "GOFLAGS=-modcacherw", "GOTOOLCHAIN=auto", "GOBIN="+bin, "GOPROXY=file://"+proxy+","+rest, "GONOSUMDB="+modulePath, "GONOSUMCHECK=1")
	t.Cleanup(func() { // the module cache is shared with other builds: leave nothing of this version there
		dir := filepath.Join(cache, filepath.FromSlash(modulePath)+"@"+version)
		_ = os.RemoveAll(dir)
		files, _ := filepath.Glob(filepath.Join(cache, "cache", "download", filepath.FromSlash(modulePath), "@v", version+".*"))
		for _, file := range files {
			_ = os.Remove(file)
		}
	})
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go install: %v\n%s", err, out)
	}
	if out := output(filepath.Join(bin, "levada"), "version"); !strings.Contains(out, version) {
		t.Fatalf("levada version says nothing of %s:\n%s", version, out)
	}
}

// writeModule writes what a module proxy serves of a version: its go.mod and a zip of the files that git knows or would know.
func writeModule(t *testing.T, root, dir, version string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir, 0o755))
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	must(err)
	must(os.WriteFile(filepath.Join(dir, version+".mod"), mod, 0o644))
	must(os.WriteFile(filepath.Join(dir, version+".info"), fmt.Appendf(nil, `{"Version":%q,"Time":"2026-01-02T03:04:05Z"}`, version), 0o644))
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	files, err := list.Output()
	must(err)
	must(os.WriteFile(filepath.Join(dir, "list"), []byte(version+"\n"), 0o644))
	f, err := os.Create(filepath.Join(dir, version+".zip"))
	must(err)
	z := zip.NewWriter(f)
	names := strings.Fields(string(files))
	var modules []string // below the root: they are not part of this one
	for _, name := range names {
		if dir, ok := strings.CutSuffix(name, "/go.mod"); ok {
			modules = append(modules, dir+"/")
		}
	}
	for _, name := range names {
		if slices.ContainsFunc(modules, func(dir string) bool { return strings.HasPrefix(name, dir) }) {
			continue
		}
		in, err := os.Open(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // removed in the working tree
		}
		must(err)
		out, err := z.Create(modulePath + "@" + version + "/" + name)
		must(err)
		_, err = io.Copy(out, in)
		must(err)
		must(in.Close())
	}
	must(z.Close())
	must(f.Close())
}
