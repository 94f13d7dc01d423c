package standalone_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/standalone"
)

const withContainer = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: checked}
spec:
  vertices:
  - name: in
    source: {generator: {rpu: 1, duration: 1s}}
  - name: fn
    volumes: [{name: v, VOLUME}]
    udf: {container: {CONTAINER}}
  - name: out
    sink: {blackhole: {}}
  edges: [{from: in, to: fn}, {from: fn, to: out}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {mode: fast}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {key: abc}
`

// TestValidateSaysNoWhereverRunDoes: a manifest is refused before anything starts, for the reasons for which a run would end; and what works is not refused.
func TestValidateSaysNoWhereverRunDoes(t *testing.T) {
	const cat = "image: quay.io/numaio/numaflow-go/map-cat:stable"
	for name, c := range map[string]struct{ container, volume, want string }{
		"sample image":          {cat, "emptyDir: {}", ""},
		"unknown image":         {"image: registry.example/mine:1", "emptyDir: {}", "no container engine"},
		"missing secret key":    {cat + ", env: [{name: A, valueFrom: {secretKeyRef: {name: hidden, key: other}}}]", "emptyDir: {}", "has no key other"},
		"secret":                {cat + ", env: [{name: A, valueFrom: {secretKeyRef: {name: hidden, key: key}}}]", "emptyDir: {}", ""},
		"missing config map":    {cat + ", envFrom: [{configMapRef: {name: none}}]", "emptyDir: {}", "no ConfigMap none"},
		"optional config map":   {cat + ", envFrom: [{configMapRef: {name: none, optional: true}}]", "emptyDir: {}", ""},
		"config map":            {cat + ", env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: mode}}}]", "emptyDir: {}", ""},
		"unknown field":         {cat + ", env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.magic}}}]", "emptyDir: {}", "spec.magic"},
		"volume of a cluster":   {"command: [/bin/cat], volumeMounts: [{name: v, mountPath: /data}]", "persistentVolumeClaim: {claimName: x}", "only in a cluster"},
		"mount without volume":  {"command: [/bin/cat], volumeMounts: [{name: w, mountPath: /data}]", "emptyDir: {}", "no volume of that name"},
		"config map without it": {"command: [/bin/cat], volumeMounts: [{name: v, mountPath: /data}]", "configMap: {name: none}", "no ConfigMap none"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.NewReplacer("CONTAINER", c.container, "VOLUME", c.volume).Replace(withContainer)
			objects, problems := v1alpha1.Decode("p.yaml", []byte(text))
			if problems.HasErrors() {
				t.Fatal(problems.Err())
			}
			for _, o := range objects {
				v1alpha1.SetDefaults(o.Manifest)
			}
			cfg := standalone.Config{Objects: objects, DataDir: t.TempDir(), Output: nil}
			found := standalone.Check(cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			started := false
			cfg.Started = func(*standalone.Running) { started = true; cancel() }
			err := standalone.Run(ctx, cfg)
			if c.want == "" {
				if found.HasErrors() || !started {
					t.Errorf("refused: %v; started: %v, %v", found.Err(), started, err)
				}
				return
			}
			if !found.HasErrors() || !strings.Contains(found.Err().Error(), c.want) {
				t.Errorf("the check says %v, want %q", found, c.want)
			}
			if started || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the run: started %v, %v, want %q", started, err, c.want)
			}
		})
	}
}
