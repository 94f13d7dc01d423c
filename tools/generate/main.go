// Command generate writes the generated Go code of the repository: the messages and services of proto/, and the deep copies of api/v1alpha1.
// Run it with `make generate`. It needs nothing but Go: the compiler of protos is a library, and the generators are tools of this module, so all versions are
// pinned in its go.mod. It is a module of its own because controller-gen's dependencies are large.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// plugins are the generators that get the protos, in the contract of protoc: a CodeGeneratorRequest on standard input, its response on standard output.
// See https://protobuf.dev/reference/cpp/api-docs/google.protobuf.compiler.plugin.pb/.
var plugins = []string{"protoc-gen-go", "protoc-gen-go-grpc"}

func main() {
	root, err := filepath.Abs("../..")
	if err == nil {
		err = protos(context.Background(), filepath.Join(root, "proto"))
	}
	if err == nil {
		err = run(root, nil, nil, "controller-gen", "object", "paths=./api/...")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

// protos replaces all generated files below dir.
func protos(ctx context.Context, dir string) error {
	sources, old, err := list(dir)
	if err != nil {
		return err
	}
	request, err := compile(ctx, dir, sources)
	if err != nil {
		return err
	}
	for _, file := range old { // the file of a proto that is gone must not stay
		if err := os.Remove(filepath.Join(dir, file)); err != nil {
			return err
		}
	}
	for _, plugin := range plugins {
		if err := generate(dir, plugin, request); err != nil {
			return fmt.Errorf("%s: %w", plugin, err)
		}
	}
	return nil
}

// list returns the protos and the generated files below dir, as paths from there.
func list(dir string) (sources, generated []string, err error) {
	err = fs.WalkDir(os.DirFS(dir), ".", func(path string, _ fs.DirEntry, err error) error {
		switch {
		case strings.HasSuffix(path, ".proto"):
			sources = append(sources, path)
		case strings.HasSuffix(path, ".pb.go"):
			generated = append(generated, path)
		}
		return err
	})
	return sources, generated, err
}

// compile returns what the generators are asked for: the code of the sources, beside them.
func compile(ctx context.Context, dir string, sources []string) ([]byte, error) {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, sources...)
	if err != nil {
		return nil, err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: sources, Parameter: proto.String("paths=source_relative"), ProtoFile: descriptors(files, sources),
	}
	return proto.Marshal(request)
}

// descriptors are the files with all that they import, which comes before them. Only sources keep their comments, since only they are generated.
func descriptors(files linker.Files, sources []string) (all []*descriptorpb.FileDescriptorProto) {
	seen := map[string]bool{}
	var add func(f protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		d := protoutil.ProtoFromFileDescriptor(f)
		if !slices.Contains(sources, f.Path()) {
			d = proto.CloneOf(d)
			d.SourceCodeInfo = nil
		}
		all = append(all, d)
	}
	for _, f := range files {
		add(f)
	}
	return all
}

// generate runs a plugin and writes its files.
func generate(dir, plugin string, request []byte) error {
	var out bytes.Buffer
	if err := run(dir, request, &out, plugin); err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out.Bytes(), &response); err != nil {
		return err
	}
	if response.GetError() != "" {
		return errors.New(response.GetError())
	}
	for _, file := range response.File {
		if err := os.WriteFile(filepath.Join(dir, file.GetName()), []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// run runs a tool of this module in a directory. The tool is built outside of the repository's workspace, whose versions are not those of this module, and runs in it.
func run(dir string, in []byte, out *bytes.Buffer, tool string, args ...string) error {
	find := exec.Command("go", "tool", "-n", tool)
	find.Env, find.Stderr = append(os.Environ(), "GOWORK=off"), os.Stderr
	path, err := find.Output()
	if err != nil {
		return fmt.Errorf("go tool -n %s: %w", tool, err)
	}
	cmd := exec.Command(strings.TrimSpace(string(path)), args...)
	cmd.Dir, cmd.Stdin, cmd.Stderr = dir, bytes.NewReader(in), os.Stderr
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GOWORK=") })
	if cmd.Stdout = os.Stdout; out != nil {
		cmd.Stdout = out
	}
	return cmd.Run()
}
