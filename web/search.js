// Where the nodes stand among the answers of ComfyUI's node search: the loader first, what nobody needs daily last.
//
// ComfyUI sorts answers by how a node's name begins, then by how often nodes are used, which it knows for its own ones alone;
// among a pack's nodes the shortest name would win ("HLWQ Verify"), and a node that was found by another word would come last.
const ORDER = ["HLWQLoadCheckpoint", "HLWQLoadDiffusionModel", "HLWQLoadTextEncoder", "HLWQLoadUpscaler", "HLWQUpscaleLatent", "HLWQDecodeSave"];
const FOUND_BY_ANOTHER_WORD = 9;
const BEGINS_WITH_IT = 1;
const EXACTLY = 0.25; // of the search library's distance: an alias is what was typed

/** Gives the pack's definitions their place. `defs` are those that ComfyUI is about to register. */
export function rank(defs) {
  for (const def of defs) {
    if (!def.name.startsWith("HLWQ")) continue;
    const place = ORDER.indexOf(def.name);
    const weight = place < 0 ? 0 : ORDER.length - place;
    def.postProcessSearchScores = ([kind, ...rest]) => {
      const alias = place === 0 && kind === FOUND_BY_ANOTHER_WORD && rest.at(-1) < EXACTLY;
      return alias ? [BEGINS_WITH_IT, -Infinity, ...rest] : [kind, -weight, ...rest];
    };
  }
}
