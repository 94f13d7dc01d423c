package standalone

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/manifest"
)

// Check reports why a run of these manifests could not start, and what it would ignore. It decides with the code that a run uses, and starts nothing. With
// cfg.Vertex, containers and secrets of other vertices are not looked at: other processes need them.
func Check(cfg Config) (problems manifest.Problems) {
	secrets, runs := newSecrets(cfg), 0
	var files vertex.Files
	for _, o := range cfg.Objects {
		switch o.Manifest.(type) {
		case *v1alpha1.Pipeline, *v1alpha1.MonoVertex:
			runs++
		default:
			continue
		}
		problems = append(problems, manifest.IgnoredByRun(o)...)
		env := &vertex.Env{
			Namespace: o.Manifest.GetNamespace(), Pipeline: o.Manifest.GetName(), Meta: o.Manifest, Logger: slog.New(slog.DiscardHandler), Dir: cfg.Dir, Listen: cfg.listenAt(),
			Commands: commandsFor(cfg.Commands, o.Manifest.GetName()), Secret: secrets.get, Values: secrets.all, FunctionEnv: cfg.FunctionEnv, FunctionUser: cfg.FunctionUser,
		}
		for _, c := range manifest.Containers(o) {
			if cfg.Vertex != "" && c.Vertex != cfg.Vertex {
				continue
			}
			if err := env.Check(c); err != nil {
				problems = append(problems, o.ProblemAt(c.Path, manifest.Problem{Code: manifest.CodeNoStart, Message: "vertex " + c.Vertex + ": " + err.Error()}))
			}
		}
		for _, s := range fileSinks(o) {
			if err := files.Claim(cfg.Dir, s.file, s.sink); err != nil {
				problems = append(problems, o.ProblemAt(s.at, manifest.Problem{Code: manifest.CodeNoStart, Message: err.Error()}))
			}
		}
		for _, s := range manifest.SecretUses(o) {
			if !inVertex(o, s.Path, cfg.Vertex) {
				continue
			}
			if _, err := secrets.get(s.Secret.Name, s.Secret.Key); err != nil {
				problems = append(problems, o.ProblemAt(s.Path, manifest.Problem{Code: manifest.CodeNoStart, Message: err.Error()}))
			}
		}
	}
	if runs == 0 && len(cfg.Objects) > 0 {
		problems = append(problems, cfg.Objects[0].ProblemAt("", manifest.Problem{Code: manifest.CodeNoStart, Message: "there is no Pipeline and no MonoVertex to run in these files"}))
	}
	return problems
}

// inVertex reports whether a path of a manifest lies in a vertex; true for an empty name.
func inVertex(o manifest.Object, path, vertex string) bool {
	p, ok := o.Manifest.(*v1alpha1.Pipeline)
	if !ok || vertex == "" {
		return true
	}
	for i := range p.Spec.Vertices {
		if p.Spec.Vertices[i].Name == vertex && strings.HasPrefix(path, fmt.Sprintf("spec.vertices[%d].", i)) {
			return true
		}
	}
	return false
}

// fileSink is a sink that writes a file. at is the path of the field.
type fileSink struct{ at, file, sink string }

func fileSinks(o manifest.Object) (found []fileSink) {
	of := func(at, name string, s *v1alpha1.Sink) {
		if s == nil {
			return
		}
		for field, a := range map[string]*v1alpha1.AbstractSink{"": &s.AbstractSink, ".fallback": s.Fallback, ".onSuccess": s.OnSuccess} {
			if a != nil && a.File != nil {
				found = append(found, fileSink{at + field + ".file.path", a.File.Path, name + field})
			}
		}
	}
	name := o.Kind() + " " + o.Manifest.GetName()
	switch m := o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		for i := range m.Spec.Vertices {
			of(fmt.Sprintf("spec.vertices[%d].sink", i), name+", vertex "+m.Spec.Vertices[i].Name, m.Spec.Vertices[i].Sink)
		}
	case *v1alpha1.MonoVertex:
		of("spec.sink", name, m.Spec.Sink)
	}
	slices.SortFunc(found, func(a, b fileSink) int { return strings.Compare(a.at, b.at) })
	return found
}

// commandsFor are the commands of a pipeline's vertices: those with its name before win.
func commandsFor(all map[string]string, pipeline string) map[string]string {
	commands := maps.Clone(all)
	for name, command := range all {
		if rest, ok := strings.CutPrefix(name, pipeline+"/"); ok {
			commands[rest] = command
		}
	}
	return commands
}
