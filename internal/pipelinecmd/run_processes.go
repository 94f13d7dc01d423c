package pipelinecmd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/processes"
	"github.com/levada-io/levada/internal/standalone"
)

// processesWanted is a vertex for which --processes names a number.
type processesWanted struct {
	key   string // namespace/pipeline/vertex
	names []string
	alone bool // one process at a time runs it
}

// parseProcesses reads --processes. The result is empty without the flag.
func parseProcesses(flags []string, objects []manifest.Object) (map[string]int, error) {
	named := map[string]int{}
	var all []processesWanted
	var known []string
	for _, o := range objects {
		for _, v := range processesOf(o) {
			all = append(all, v)
			known = append(known, v.names[0])
		}
	}
	for _, flag := range flags {
		name, text, ok := strings.Cut(strings.TrimSpace(flag), "=")
		n, err := strconv.Atoi(text)
		if !ok || name == "" || err != nil {
			return nil, fmt.Errorf("%q: expected VERTEX=N, for instance cat=4", flag)
		}
		if n < 1 || n > standalone.MaxProcesses {
			return nil, fmt.Errorf("%q: expected 1 to %d processes", flag, standalone.MaxProcesses)
		}
		found := slices.DeleteFunc(slices.Clone(all), func(v processesWanted) bool { return !slices.Contains(v.names, name) })
		switch {
		case len(found) == 0:
			return nil, fmt.Errorf("%q: no vertex is called %s; the vertices are %s", flag, name, strings.Join(known, ", "))
		case len(found) > 1:
			return nil, fmt.Errorf("%q: %d vertices are called %s: say which one as PIPELINE/VERTEX", flag, len(found), name)
		case n > 1 && found[0].alone:
			return nil, fmt.Errorf("%q: vertex %s runs as one process: one process at a time can read its source or write to its sink. Leave it out, or say %s=1", flag, name, name)
		}
		if before, twice := named[found[0].key]; twice && before != n {
			return nil, fmt.Errorf("%q: %s is named twice, with %d and %d processes", flag, name, before, n)
		}
		named[found[0].key] = n
	}
	return named, nil
}

// processesOf are the vertices of a Pipeline or MonoVertex by the names that people may give them.
func processesOf(o manifest.Object) (all []processesWanted) {
	name, namespace := o.Manifest.GetName(), cmp.Or(o.Manifest.GetNamespace(), "default")
	switch m := o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		plans, err := vertex.PlanPipeline(&m.Spec)
		if err != nil {
			return nil // the run says more of it
		}
		for i := range plans {
			v := plans[i].Name
			all = append(all, processesWanted{key: namespace + "/" + name + "/" + v, names: []string{v, name + "/" + v, namespace + "/" + name + "/" + v}, alone: !plans[i].Shareable()})
		}
	case *v1alpha1.MonoVertex:
		plan, err := vertex.PlanMono(m.Name, &m.Spec)
		if err != nil {
			return nil
		}
		all = append(all, processesWanted{key: namespace + "/" + name + "/" + name, names: []string{name, namespace + "/" + name}, alone: !plan.Shareable()})
	}
	return all
}

// asProcesses is how the run goes on with a process for each vertex.
func (f *runFlags) asProcesses(cmd *cobra.Command, args []string, r *pipelineRun, named map[string]int, screen *commandline.Screen) *processes.Config {
	c := &processes.Config{Named: named, Command: childCommand(cmd, f), Line: f.childLine(screen, r)}
	if file, ok := cmd.InOrStdin().(*os.File); ok && !slices.Contains(args, "-") {
		c.Stdin = file
	}
	if file, ok := cmd.OutOrStdout().(*os.File); ok {
		c.Stdout = file
	}
	return c
}

// runProcesses runs the vertices as processes.
func (r *pipelineRun) runProcesses(ctx context.Context, started func(reopener, *shown), ended func(*standalone.Result)) error {
	r.processes.Run = r.cfg
	r.processes.Ended = ended
	r.processes.Started = func(running *processes.Running) {
		s := &shown{address: running.Address, durability: running.Durability}
		for _, p := range running.Pipelines {
			s.pipelines = append(s.pipelines, shownPipeline{kind: p.Kind, namespace: p.Namespace, name: p.Name, counts: p.Counts, stats: func(context.Context) []vertex.Stats { return p.Counts() }})
		}
		started(running, s)
	}
	return processes.Run(ctx, *r.processes)
}

// ofRun are the flags of levada vertex that a child does not get as they were given to levada run.
var ofRun = []string{"vertex", "name", "data", "listen", "pprof", "nats", "redis", "drain-timeout", "log-format", "log-level", hostedName, "help"}

// childCommand returns the command line of a process. URLs of brokers can hold passwords, and go through the environment.
func childCommand(cmd *cobra.Command, f *runFlags) func(processes.Child) (args, env []string) {
	var given, cleared []string
	vertexFlags := newVertexCommand(f.version).Flags()
	vertexFlags.VisitAll(func(flag *pflag.Flag) {
		cleared = append(cleared, commandline.Variable(flag.Name)+"=")
		of := cmd.Flags().Lookup(flag.Name)
		if of == nil || !of.Changed || slices.Contains(ofRun, flag.Name) {
			return
		}
		values := []string{of.Value.String()}
		if list, ok := of.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			given = append(given, "--"+flag.Name+"="+v)
		}
	})
	base := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return slices.ContainsFunc(cleared, func(name string) bool { return strings.HasPrefix(variable, name) })
	})
	format := "text"
	if f.log.JSON() {
		format = "json"
	}
	return func(c processes.Child) (args, env []string) {
		text, err := json.Marshal(hosted{Hosted: c.Hosted, Label: c.Label})
		if err != nil {
			panic(err) // a plain struct
		}
		args = append([]string{
			"vertex", c.Manifest, "--vertex=" + c.Vertex, "--name=" + c.Name, "--data=" + c.DataDir, "--listen=127.0.0.1:0", "--log-format=" + format, "--log-level=" + f.log.Level,
			"--drain-timeout=" + processes.ChildDrain(f.drain).String(), "--" + hostedName + "=" + string(text),
		}, given...)
		env = slices.Clone(base)
		switch {
		case c.NATS != "":
			args = append(args, "--nats-token-file="+c.TokenFile)
			env = append(env, commandline.Variable("nats")+"="+c.NATS)
		case f.broker.url != "":
			env = append(env, commandline.Variable("nats")+"="+f.broker.url)
		case f.broker.redis.url != "":
			env = append(env, commandline.Variable("redis")+"="+f.broker.redis.url)
		}
		return args, env
	}
}

// childLine passes on what a process writes to its standard error. Its log lines name the process; what is not one of them, as the trace of a panic, gets its name here.
func (f *runFlags) childLine(out io.Writer, r *pipelineRun) func(process, line string) {
	return func(process, line string) {
		json := f.jsonLog(r.log)
		switch {
		case json != nil && !strings.HasPrefix(line, "{"):
			json.Info(line, "event.action", "process-output", "process", process)
			return
		case json == nil && !strings.HasPrefix(line, "t=") && !strings.HasPrefix(line, process+" | "):
			line = process + " | " + commandline.PrintableLines(line)
		}
		_, _ = io.WriteString(out, line+"\n") // where logs go
	}
}
