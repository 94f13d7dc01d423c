//go:build unix

package standalone_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/standalone"
	"github.com/levada-io/levada/internal/testredis"
)

// The parts of the manifests below.
const (
	redisPipeline = `apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: NAME}
spec:
  interStepBufferServiceName: SERVICE
  vertices:
    - {name: in, source: {file: {path: in.txt}}}
    - {name: cat, partitions: 2, udf: {builtin: {name: cat}}}
    - {name: out, sink: {file: {path: NAME.txt}}}
  edges: [{from: in, to: cat}, {from: cat, to: out}]
---
`
	bufferService = `apiVersion: numaflow.numaproj.io/v1alpha1
kind: InterStepBufferService
metadata: {name: NAME}
spec: {SPEC}
---
`
	redisSecret = `apiVersion: v1
kind: Secret
metadata: {name: broker}
stringData: {password: s3cret}
---
`
)

// A pipeline whose buffer service is an external Redis runs over it, with user and password from a secret, and the next run goes on there. Passwords are nowhere.
func TestBufferServiceThatIsAnExternalRedis(t *testing.T) {
	server := testredis.Server(t, testredis.Settings("user default off\nuser orders on >s3cret ~levada:* +@all -@dangerous +info +config|get"), testredis.Login("orders", "s3cret"))
	host := server.DSN()[strings.LastIndex(server.DSN(), "@")+1:]
	text := strings.NewReplacer("NAME", "a", "SERVICE", "fast").Replace(redisPipeline) +
		strings.NewReplacer("NAME", "fast", "SPEC", "redis: {external: {url: \""+host+"\", user: orders, password: {name: broker, key: password}}}").Replace(bufferService) + redisSecret
	dir := t.TempDir()
	write(t, dir, "in.txt", "1\n2\n3\n")
	durability := runRedis(t, dir, text, "")
	if !strings.Contains(durability, "Redis at redis://"+host+", and a power loss there") || strings.Contains(durability, "s3cret") {
		t.Errorf("durability: %s", durability)
	}
	write(t, dir, "in.txt", "1\n2\n3\n4\n")
	runRedis(t, dir, text, "")
	if got := strings.Fields(read(t, dir, "a.txt")); len(got) != 4 {
		t.Errorf("lines in the sink: %q, want 4", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "broker")); err == nil {
		t.Error("the broker in this process was started, too")
	}
}

// What a run cannot do with the buffer services of its manifests is one error that says which, and what to do.
func TestBufferServicesThatDoNotFitOneRun(t *testing.T) {
	pipeline := func(name, service string) string {
		return strings.NewReplacer("NAME", name, "SERVICE", service).Replace(redisPipeline)
	}
	service := func(name, spec string) string {
		return strings.NewReplacer("NAME", name, "SPEC", spec).Replace(bufferService)
	}
	external := "redis: {external: {url: \"127.0.0.1:1\"}}"
	for name, c := range map[string]struct{ text, want string }{
		"native":       {pipeline("a", "x") + service("x", "redis: {native: {version: 7.0.15}}"), "p.yaml:15:16: error LV2208: native: Levada starts no Redis servers, and pipeline a needs one"},
		"two services": {pipeline("a", "x") + pipeline("b", "z") + service("x", external) + service("z", external), "pipelines a and b have the buffer services x and z"},
		"and another":  {pipeline("a", "x") + pipeline("b", "z") + service("x", external), "pipeline a has the buffer service x, which is Redis, and pipeline b another one"},
		"no secret":    {pipeline("a", "x") + service("x", "redis: {external: {url: redis, user: u, password: {name: s, key: k}}}"), "secret s has no key k"},
		"a bad port":   {pipeline("a", "x") + service("x", "redis: {external: {url: \"redis:70000\"}}"), "InterStepBufferService x: the Redis URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, dir, "in.txt", "")
			runRedis(t, dir, c.text, c.want)
		})
	}
}

// runRedis runs manifests to their end, and returns what the run says about durability.
func runRedis(t *testing.T, dir, text, wantError string) (durability string) {
	t.Helper()
	objects, problems := manifest.Decode("p.yaml", []byte(text))
	problems = append(problems, manifest.Validate(objects)...)
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	for _, o := range objects {
		v1alpha1.SetDefaults(o.Manifest)
	}
	err := standalone.Run(t.Context(), standalone.Config{
		Objects: objects, DataDir: filepath.Join(dir, "data"), Dir: dir, Started: func(r *standalone.Running) { durability = r.Durability },
	})
	switch {
	case wantError == "" && err != nil:
		t.Fatal(err)
	case wantError != "" && (err == nil || !strings.Contains(err.Error(), wantError)):
		t.Errorf("the error is %v, want %q", err, wantError)
	}
	return durability
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
