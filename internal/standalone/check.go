package standalone

import (
	"log/slog"
	"maps"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/vertex"
)

// Check reports why a run of these manifests could not start, and what it would ignore. It decides with the code that a run uses, and starts nothing.
func Check(cfg Config) (problems v1alpha1.Problems) {
	secrets, runs := newSecrets(cfg), 0
	for _, o := range cfg.Objects {
		switch o.Manifest.(type) {
		case *v1alpha1.Pipeline, *v1alpha1.MonoVertex:
			runs++
		default:
			continue
		}
		problems = append(problems, v1alpha1.IgnoredByRun(o)...)
		env := &vertex.Env{
			Namespace: o.Manifest.GetNamespace(), Pipeline: o.Manifest.GetName(), Meta: o.Manifest, Logger: slog.New(slog.DiscardHandler), Dir: cfg.Dir,
			Commands: commandsFor(cfg.Commands, o.Manifest.GetName()), Secret: secrets.get, Values: secrets.all, FunctionEnv: cfg.FunctionEnv, FunctionUser: cfg.FunctionUser,
		}
		for _, c := range v1alpha1.Containers(o) {
			if err := env.Check(c); err != nil {
				problems = append(problems, o.ProblemAt(c.Path, v1alpha1.Problem{Code: v1alpha1.CodeNoStart, Message: "vertex " + c.Vertex + ": " + err.Error()}))
			}
		}
		for _, s := range v1alpha1.SecretUses(o) {
			if _, err := secrets.get(s.Secret.Name, s.Secret.Key); err != nil {
				problems = append(problems, o.ProblemAt(s.Path, v1alpha1.Problem{Code: v1alpha1.CodeNoStart, Message: err.Error()}))
			}
		}
	}
	if runs == 0 && len(cfg.Objects) > 0 {
		problems = append(problems, cfg.Objects[0].ProblemAt("", v1alpha1.Problem{Code: v1alpha1.CodeNoStart, Message: "there is no Pipeline and no MonoVertex to run in these files"}))
	}
	return problems
}

// commandsFor are the commands of a pipeline's vertices: those with its name before win.
func commandsFor(all map[string]string, pipeline string) map[string]string {
	commands := maps.Clone(all)
	for name, command := range all {
		if rest, ok := cutPrefix(name, pipeline+"/"); ok {
			commands[rest] = command
		}
	}
	return commands
}
