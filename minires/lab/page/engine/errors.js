// What went wrong in one sentence that a reader can be shown. Any other error is a mistake of ours.
export class LabError extends Error {}
