// Command modules does what the go command does not do across the modules of a workspace that are released together. It is run from anywhere in the repository:
//
//	go -C tools/generate run ./modules tidy              go mod tidy in each module, with the others as they are in the working tree
//	go -C tools/generate run ./modules version v1.2.3    the version at which they require each other, in every go.mod and in go.work
//	go -C tools/generate run ./modules check             fails if a go.mod names another version than the rest, or go.work lacks a module
//	go -C tools/generate run ./modules tags v1.2.3       prints the tags of a release
//	go -C tools/generate run ./modules pack v1.2.3 DIR   writes into DIR what a module proxy serves of that version: GOPROXY=file://DIR
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/zip"
)

const usage = "usage: modules tidy | check | version VERSION | tags VERSION | pack VERSION DIR"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "modules:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	w, err := load()
	if err != nil {
		return err
	}
	switch {
	case len(args) == 1 && args[0] == "tidy":
		return w.tidy()
	case len(args) == 1 && args[0] == "check":
		return w.check()
	case len(args) == 2 && args[0] == "version" && semver.IsValid(args[1]):
		return w.write(args[1])
	case len(args) == 2 && args[0] == "tags" && semver.IsValid(args[1]):
		dirs := w.dirs()
		for _, dir := range append(dirs[1:], dirs[0]) { // the root module requires the others: its tag comes last
			fmt.Println(path.Join(dir, args[1]))
		}
		return nil
	case len(args) == 3 && args[0] == "pack" && semver.IsValid(args[1]):
		return w.pack(args[1], args[2])
	}
	return errors.New(usage)
}

// workspace is the repository and the modules that its go.work uses.
type workspace struct {
	root    string
	work    *modfile.WorkFile
	modules map[string]*modfile.File // by folder, with slashes; "." is the root module
}

func load() (*workspace, error) {
	out, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return nil, fmt.Errorf("git rev-parse --show-toplevel: %w", err)
	}
	w := &workspace{root: strings.TrimSpace(string(out)), modules: map[string]*modfile.File{}}
	data, err := os.ReadFile(w.file("go.work"))
	if err != nil {
		return nil, err
	}
	if w.work, err = modfile.ParseWork("go.work", data, nil); err != nil {
		return nil, err
	}
	for _, use := range w.work.Use {
		dir := path.Clean(use.Path)
		name := path.Join(dir, "go.mod")
		data, err := os.ReadFile(w.file(name))
		if err != nil {
			return nil, err
		}
		if w.modules[dir], err = modfile.Parse(name, data, nil); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *workspace) file(name string) string { return filepath.Join(w.root, filepath.FromSlash(name)) }

func (w *workspace) dirs() []string { return slices.Sorted(maps.Keys(w.modules)) }

// paths are the module paths with their folders.
func (w *workspace) paths() map[string]string {
	paths := map[string]string{}
	for dir, mod := range w.modules {
		paths[mod.Module.Mod.Path] = dir
	}
	return paths
}

// write sets the version at which the modules require each other. go.work replaces that version by the working tree: no proxy has it before it is released.
func (w *workspace) write(version string) error {
	paths := w.paths()
	for _, dir := range w.dirs() {
		if err := require(w.modules[dir], paths, version); err != nil {
			return err
		}
		data, err := w.modules[dir].Format()
		if err != nil {
			return err
		}
		if err := os.WriteFile(w.file(path.Join(dir, "go.mod")), data, 0o644); err != nil {
			return err
		}
	}
	for _, r := range slices.Clone(w.work.Replace) {
		if err := w.work.DropReplace(r.Old.Path, r.Old.Version); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		if err := w.work.AddReplace(name, version, local(paths[name]), ""); err != nil {
			return err
		}
	}
	w.work.Cleanup()
	return os.WriteFile(w.file("go.work"), modfile.Format(w.work.Syntax), 0o644)
}

func local(dir string) string {
	if dir == "." {
		return dir
	}
	return "./" + dir
}

func require(mod *modfile.File, paths map[string]string, version string) error {
	for _, r := range mod.Require {
		if _, ours := paths[r.Mod.Path]; !ours {
			continue
		}
		if err := mod.AddRequire(r.Mod.Path, version); err != nil {
			return err
		}
	}
	mod.Cleanup()
	return nil
}

// check finds what a release would trip over.
func (w *workspace) check() error {
	var found []error
	paths, versions := w.paths(), map[string][]string{}
	for _, dir := range w.dirs() {
		mod := w.modules[dir]
		name := path.Join(dir, "go.mod")
		for _, r := range mod.Require {
			if _, ours := paths[r.Mod.Path]; ours {
				versions[r.Mod.Version] = append(versions[r.Mod.Version], name)
			}
		}
		if len(mod.Replace)+len(mod.Exclude) > 0 {
			found = append(found, fmt.Errorf("%s has replace or exclude directives: `go install ...@version` refuses them, and users' programs do not see them; put them into go.work while you work, and remove them before you commit", name))
		}
		if want := path.Join(w.modules["."].Module.Mod.Path, dir); mod.Module.Mod.Path != want {
			found = append(found, fmt.Errorf("%s: the module is called %s, want %s", name, mod.Module.Mod.Path, want))
		}
	}
	if len(versions) > 1 {
		found = append(found, fmt.Errorf("modules of this repository are required at several versions: %v; set one with `go -C tools/generate run ./modules version VERSION`", versions))
	}
	for _, r := range w.work.Replace {
		if _, ours := paths[r.Old.Path]; !ours || len(versions[r.Old.Version]) == 0 {
			found = append(found, fmt.Errorf("go.work replaces %s, which no go.mod requires at that version: run `go -C tools/generate run ./modules version VERSION`", r.Old))
		}
	}
	return errors.Join(found...)
}

// tidy runs go mod tidy in each module. That command does not know of workspaces, so each go.mod has replace directives while it runs.
func (w *workspace) tidy() error {
	for _, dir := range w.dirs() {
		if err := w.tidyModule(dir); err != nil {
			return fmt.Errorf("%s: %w", path.Join(dir, "go.mod"), err)
		}
	}
	return nil
}

func (w *workspace) tidyModule(dir string) (err error) {
	name := w.file(path.Join(dir, "go.mod"))
	before, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.WriteFile(name, before, 0o644))
		}
	}()
	version := w.version()
	if err := w.editOthers(name, func(mod *modfile.File, other string) error {
		return mod.AddReplace(other, version, w.file(w.paths()[other]), "")
	}); err != nil {
		return err
	}
	cmd := exec.Command("go", "mod", "tidy")
	cmd.Dir, cmd.Env, cmd.Stderr = w.file(dir), append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod"), os.Stderr
	// A module that is not required yet is found by the go command at the version that it is replaced at.
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go mod tidy: %w", err)
	}
	return w.editOthers(name, func(mod *modfile.File, other string) error { return mod.DropReplace(other, version) })
}

// editOthers changes the go.mod file for each other module of the workspace.
func (w *workspace) editOthers(name string, change func(mod *modfile.File, other string) error) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	mod, err := modfile.Parse(name, data, nil)
	if err != nil {
		return err
	}
	for other := range w.paths() {
		if other == mod.Module.Mod.Path {
			continue
		}
		if err := change(mod, other); err != nil {
			return err
		}
	}
	mod.Cleanup()
	if data, err = mod.Format(); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o644)
}

// version is the one at which the modules require each other.
func (w *workspace) version() string {
	if len(w.work.Replace) > 0 {
		return w.work.Replace[0].Old.Version
	}
	return "v0.1.0"
}

// pack writes what a module proxy serves: the files that git knows or would know, and go.mod with the version.
func (w *workspace) pack(version, to string) error {
	files, err := w.files()
	if err != nil {
		return err
	}
	paths := w.paths()
	for _, dir := range w.dirs() {
		mod := w.modules[dir]
		if err := require(mod, paths, version); err != nil {
			return err
		}
		data, err := mod.Format()
		if err != nil {
			return err
		}
		escaped, err := module.EscapePath(mod.Module.Mod.Path)
		if err != nil {
			return err
		}
		served := filepath.Join(to, filepath.FromSlash(escaped), "@v")
		if err := os.MkdirAll(served, 0o755); err != nil {
			return err
		}
		for name, content := range map[string][]byte{
			"list": []byte(version + "\n"), version + ".mod": data,
			version + ".info": fmt.Appendf(nil, `{"Version":%q,"Time":"2026-01-02T03:04:05Z"}`, version),
		} {
			if err := os.WriteFile(filepath.Join(served, name), content, 0o644); err != nil {
				return err
			}
		}
		if err := w.zip(dir, version, data, files, filepath.Join(served, version+".zip")); err != nil {
			return err
		}
	}
	return nil
}

// files are those of the working tree that are not ignored.
func (w *workspace) files() ([]string, error) {
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = w.root
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 }), nil
}

// zip writes the archive of a module. Its licence is that of the repository.
func (w *workspace) zip(dir, version string, gomod []byte, files []string, to string) (err error) {
	var below []string // folders of other modules: these files are theirs
	for _, name := range files {
		if other, ok := strings.CutSuffix(name, "/go.mod"); ok && other != dir {
			below = append(below, other+"/")
		}
	}
	prefix := dir + "/"
	if dir == "." {
		prefix = ""
	}
	in := []zip.File{file{name: "go.mod", content: gomod}}
	if dir != "." {
		in = append(in, file{name: "LICENSE", path: w.file("LICENSE")})
	}
	for _, name := range files {
		inside, ok := strings.CutPrefix(name, prefix)
		if !ok || inside == "go.mod" || slices.ContainsFunc(below, func(other string) bool { return strings.HasPrefix(other, prefix) && strings.HasPrefix(name, other) }) {
			continue
		}
		if info, err := os.Lstat(w.file(name)); err != nil || !info.Mode().IsRegular() {
			continue // removed in the working tree, or a link
		}
		in = append(in, file{name: inside, path: w.file(name)})
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return zip.Create(out, module.Version{Path: w.modules[dir].Module.Mod.Path, Version: version}, in)
}

// file is one of the archive: with content, or in the working tree.
type file struct {
	name, path string
	content    []byte
}

func (f file) Path() string { return f.name }

func (f file) Lstat() (fs.FileInfo, error) {
	if f.path != "" {
		return os.Lstat(f.path)
	}
	return made{name: f.name, size: int64(len(f.content))}, nil
}

func (f file) Open() (io.ReadCloser, error) {
	if f.path != "" {
		return os.Open(f.path)
	}
	return io.NopCloser(bytes.NewReader(f.content)), nil
}

// made describes a file that has content only.
type made struct {
	name string
	size int64
}

func (m made) Name() string     { return m.name }
func (m made) Size() int64      { return m.size }
func (made) Mode() fs.FileMode  { return 0o644 }
func (made) ModTime() time.Time { return time.Time{} }
func (made) IsDir() bool        { return false }
func (made) Sys() any           { return nil }
